#!/usr/bin/env bash
# A SLURM of this one machine for tests/test_slurm.py: bash tests/slurm/cluster.sh start | stop
#
# Debian's packages, as root; without systemd, cgroups or accounting. Two partitions: jobs of `urgent` preempt those of
# `main`, which are requeued. A machine that has a SLURM of its own is left alone.
set -euo pipefail
conf=/etc/slurm/slurm.conf
mark="# of normloss's tests"

refuse() { echo "tests/slurm: $1"; exit 3; }

install_slurm() {
  command -v slurmctld > /dev/null && return
  command -v apt-get > /dev/null || refuse "needs apt-get to install SLURM, got none"
  echo "installing SLURM"
  DEBIAN_FRONTEND=noninteractive apt-get -qq update > /dev/null || true
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
    slurm-wlm slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge > /dev/null || refuse "apt-get could not install SLURM"
}

configure() {
  local host
  host=$(hostname -s)
  install -d -m 0755 /etc/slurm /var/lib/normloss-slurm/ctld /var/lib/normloss-slurm/slurmd /var/log/slurm
  cat > "$conf" << END
$mark
ClusterName=normloss
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
ReturnToService=2
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
StateSaveLocation=/var/lib/normloss-slurm/ctld
SlurmdSpoolDir=/var/lib/normloss-slurm/slurmd
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
KillWait=15
MinJobAge=300
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_min_interval=200000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=$host Default=NO MaxTime=INFINITE State=UP PriorityTier=100 PreemptMode=OFF
END
}

start() {
  [ "$(id -u)" = 0 ] || refuse "needs root to start SLURM"
  if [ -e "$conf" ] && ! grep -qF "$mark" "$conf"; then refuse "$conf is of another SLURM, which is left alone"; fi
  install_slurm
  configure
  install -d -o munge -g munge -m 0755 /run/munge
  pgrep -x munged > /dev/null || runuser -u munge -- munged
  pgrep -x slurmctld > /dev/null || slurmctld
  pgrep -x slurmd > /dev/null || slurmd
  for _ in $(seq 60); do
    [ "$(sinfo --noheader --format=%T --partition=main 2> /dev/null)" = idle ] && return
    sleep 0.5
  done
  refuse "the node is not idle after 30 seconds: $(sinfo --noheader 2>&1 | head -1)"
}

stop() {
  grep -qsF "$mark" "$conf" || exit 0
  scancel --me 2> /dev/null || true
  scontrol shutdown 2> /dev/null || true
  for _ in $(seq 40); do pgrep -x slurmctld > /dev/null || pgrep -x slurmd > /dev/null || break; sleep 0.5; done
  for file in /run/slurmd.pid /run/slurmctld.pid /run/munge/munged.pid; do
    [ -e "$file" ] && kill "$(cat "$file")" 2> /dev/null || true
  done
  rm -rf "$conf" /var/lib/normloss-slurm
}

case "${1:-}" in
  start) start ;;
  stop) stop ;;
  *) echo "usage: bash tests/slurm/cluster.sh start | stop"; exit 2 ;;
esac
