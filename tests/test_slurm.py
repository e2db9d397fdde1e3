"""A sweep on a real SLURM of this machine: whatever befalls its jobs, each run ends as an undisturbed one.

make test-slurm: tests/slurm/cluster.sh installs and starts it.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from functools import cache
from pathlib import Path

import pytest
from forked import assert_same_end

from normloss.runs import files, records
from tests.conftest import ran

CONF = Path(os.environ.get("SLURM_CONF", "/etc/slurm/slurm.conf"))  # SLURM reads the variable too
OURS = CONF.exists() and "# of normloss's tests" in CONF.read_text()
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not OURS, reason="no SLURM of tests/slurm/cluster.sh; make test-slurm starts one"),
]
DIGITS = ["dataset=digits", "model=resnet8", "device=cpu", "threads=1", "wandb.mode=disabled", "train.milestones=[]"]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.partition=main", "hydra.launcher.gpus=0", "hydra.launcher.cpus=1"]
SAVE_OFTEN = "checkpoint_minutes=0.001"
SIX = [*DIGITS, "train.epochs=3", "reg=wd,nl", "seed=0,1,2"]
TWO = [*DIGITS, "train.epochs=30", SAVE_OFTEN, "seed=0,1"]  # long ones
ENDED = 400.0  # seconds within which jobs leave the queue, requeued and all


def shell(*words: str) -> str:
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def train(*words: str, **options) -> str:
    ended = ran("train.py", *words, **options)
    return ended.stdout + ended.stderr


def queue() -> list[str]:
    return shell("squeue", "--me", "--noheader", "--array", "--format=%i %T").splitlines()


def wait_until(true, what: str, seconds: float = ENDED) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not {what} after {seconds:g} s; queue: {queue()}"
        time.sleep(0.5)


def wait_for_the_queue(seconds: float = ENDED) -> None:
    wait_until(lambda: not queue(), "out of the queue", seconds)


def saved(store: Path) -> int:
    return sum((files.read_json(path) or {}).get("saved", 0) for path in store.glob("*/status.json"))


@pytest.fixture
def submit(tmp_path):
    """submit(*words) -> what the command says that submits a sweep to the store tmp_path."""
    return lambda *words, **options: train("-m", *SLURM, *words, f"store={tmp_path}", **options)


@pytest.fixture(autouse=True)
def empty_queue():
    yield
    if OURS:
        subprocess.run(["scancel", "--me", "--signal=KILL"])
        subprocess.run(["scancel", "--me"])
        wait_until(lambda: not queue(), "empty", 120)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """undisturbed(*words) -> the runs of a local sweep, made once."""

    @cache
    def runs(*words: str) -> list[records.RunRecord]:
        store = tmp_path_factory.mktemp("local")
        train("-m", *words, f"store={store}", "hydra.launcher.jobs=2")
        return records.load_runs(store)

    return runs


def assert_ends_undisturbed(store: Path, expected: list[records.RunRecord]) -> list[records.RunRecord]:
    found = records.load_runs(store)
    assert [run.id for run in found] == [run.id for run in expected]
    for run, other in zip(found, expected, strict=True):
        assert run.state == "done"
        assert_same_end(run, other)
    return found


def sessions(runs: list[records.RunRecord]) -> list[int]:
    return [len(run.meta["sessions"]) for run in runs]


def job_of(output: str) -> str:
    return re.search(r"job (\S+)", output)[1]


@pytest.mark.parametrize(("per_job", "jobs"), [(1, 6), (4, 2)])
def test_a_sweep_of_six_is_an_array_and_ends_as_a_local_one(tmp_path, submit, undisturbed, per_job, jobs):
    words = [*SIX, f"hydra.launcher.runs_per_job={per_job}"]
    first = submit(*words)
    assert "6 of 6 runs submitted; rerun the command to submit missing runs" in first
    assert len({job_of(line) for line in first.splitlines() if "submitted  job " in line}) == jobs
    again = submit(*words)
    assert "0 of 6 runs submitted" in again
    assert "submitted  job" not in again
    wait_for_the_queue()
    assert sessions(assert_ends_undisturbed(tmp_path, undisturbed(*SIX))) == [1] * 6
    assert submit(*words).count("  done\n") == 6


def test_a_plan_shows_what_is_queued_and_running(tmp_path):
    words = [*DIGITS, "train.epochs=6", f"store={tmp_path}"]
    train("experiment=demo", *words, *SLURM, "hydra.launcher.jobs=1")
    plan = ["scripts/plan.py", "demo", *words]
    wait_until(lambda: saved(tmp_path) or list(tmp_path.glob("*/status.json")), "begun")
    text = ran(*plan).stdout
    assert re.search(r"demo: 6 runs: [0-5] (missing|done|queued|running)", text)
    assert "queued" in text
    wait_for_the_queue()
    assert "demo: 6 runs: 6 done" in ran(*plan).stdout


def test_a_job_that_is_preempted_goes_on_by_itself(tmp_path, submit, undisturbed):
    submit(*TWO)
    wait_until(lambda: saved(tmp_path) > 20, "under way")
    shell("sbatch", "--partition=urgent", f"--cpus-per-task={os.cpu_count()}", "--wrap=sleep 2", "--output=/dev/null")
    wait_for_the_queue()
    runs = assert_ends_undisturbed(tmp_path, undisturbed(*TWO))
    assert max(sessions(runs)) >= 2
    assert all(run.meta["sessions"][1]["from_step"] > 0 for run in runs if len(run.meta["sessions"]) > 1)


def test_a_job_that_runs_into_its_time_limit_goes_on_by_itself(tmp_path, undisturbed):
    """Once the run is under way the limit is set to one to two minutes from then, of which the signal takes 110 s."""
    words = [*DIGITS, "model=resnet20", "recipe=digits_resnet8", "train.epochs=30"]
    limits = ["hydra.launcher.minutes=60", "hydra.launcher.signal_seconds=110"]
    job, began = job_of(train(*words, *SLURM, f"store={tmp_path}", *limits)), time.monotonic()
    wait_until(lambda: list(tmp_path.glob("*/epochs.jsonl")), "under way")
    shell("scontrol", "update", f"JobId={job}", f"TimeLimit={int((time.monotonic() - began) / 60) + 2}")
    wait_until(lambda: "PENDING" in " ".join(queue()), "requeued")
    shell("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    wait_for_the_queue()
    (run,) = assert_ends_undisturbed(tmp_path, undisturbed(*words, "seed=0"))
    assert sessions([run]) == [2]
    assert run.meta["sessions"][1]["from_step"] > 0


@pytest.mark.parametrize("how", ["the job killed", "cancelled", "the runs killed"])
def test_what_slurm_does_not_requeue_the_same_command_does(tmp_path, submit, undisturbed, how):
    job = job_of(submit(*TWO)).partition("_")[0]
    wait_until(lambda: saved(tmp_path) > 20, "under way")
    if how == "the runs killed":
        for path in tmp_path.glob("*/status.json"):
            os.kill(files.read_json(path)["pid"], signal.SIGKILL)
    else:
        shell("scancel", *(["--signal=KILL"] if how == "the job killed" else []), job)
    wait_for_the_queue()
    assert {run.state for run in records.load_runs(tmp_path)} <= {"incomplete", "done"}
    assert "runs submitted" in submit(*TWO)
    wait_for_the_queue()
    assert max(sessions(assert_ends_undisturbed(tmp_path, undisturbed(*TWO)))) >= 2


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_submission_that_is_killed_submits_nothing_twice(tmp_path, submit, undisturbed, when):
    """Killed by an sbatch of ours, before or after the real one."""
    bin = tmp_path / ".bin"
    bin.mkdir()
    submits = f'{shutil.which("sbatch")} "$@"' if when == "after" else ":"
    (bin / "sbatch").write_text(f"#!/bin/sh\n{submits}\nkill -9 $PPID\n")
    (bin / "sbatch").chmod(0o755)
    submit(*SIX, status=-9, PATH=f"{bin}:{os.environ['PATH']}")
    assert len(queue()) == (6 if when == "after" else 0)
    assert f"{0 if when == 'after' else 6} of 6 runs submitted" in submit(*SIX)
    wait_for_the_queue()
    submit(*SIX)  # jobs without what submitit had not yet put in place have failed
    wait_for_the_queue()
    assert sessions(assert_ends_undisturbed(tmp_path, undisturbed(*SIX))) == [1] * 6


def test_a_controller_that_is_restarted_loses_nothing(tmp_path, submit, undisturbed):
    submit(*TWO)
    wait_until(lambda: saved(tmp_path) > 20, "under way")
    pid = int(Path(re.search(r"^SlurmctldPidFile=(.*)$", CONF.read_text(), re.M)[1]).read_text())
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "down", 60)
    assert "squeue: must list the queued jobs, got" in submit(*TWO, status=2)
    shell("slurmctld")
    wait_until(lambda: subprocess.run(["squeue", "--me"], capture_output=True).returncode == 0, "up again", 60)
    wait_for_the_queue()
    assert sessions(assert_ends_undisturbed(tmp_path, undisturbed(*TWO))) == [1, 1]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["hydra.launcher.partition=nowhere"], "sbatch: Batch job submission failed: Invalid partition name specified"),
        (["restart=true"], "restart: must be false on SLURM, since a job that is requeued would start anew each time"),
        (["budget_minutes=5"], "budget_minutes: is no key of a job on SLURM; its time is hydra.launcher.minutes"),
    ],
)
def test_what_cannot_be_submitted_is_one_line(submit, words, line):
    *before, last = submit(*DIGITS, "seed=0,1", *words, status=2).splitlines()
    assert last.startswith(f"normloss: {line}")
    assert all(one.startswith("sbatch: error: ") for one in before)  # its own
    assert not queue()
