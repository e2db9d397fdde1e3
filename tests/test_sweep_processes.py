"""Processes of a sweep: forked once torch is there, each of its own all the same, none in the way of another."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from normloss.config import trained_config
from normloss.runs import files, records
from normloss.sweeps import processes
from normloss.sweeps.composing import plan
from normloss.sweeps.members import Member, report, total
from tests.conftest import ROOT
from tests.test_faults import DROPOUT, end, start, timeless, wait_until
from tests.test_signals import alive


def test_a_process_has_its_own_environment_session_and_threads(tmp_path):
    import torch

    def facts(file: Path, status: int) -> int:
        torch.set_num_threads(3)
        found = {
            "mark": os.environ.get("MARK"), "leads": os.getsid(0) == os.getpid(), "parent": os.getppid(),
            "threads": torch.get_num_threads(), "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        }  # fmt: skip
        file.write_text(json.dumps(found))
        return status

    before, threads = dict(os.environ), torch.get_num_threads()
    running = {k: processes.start(lambda k=k: facts(tmp_path / f"{k}.json", k), {"MARK": f"mark {k}"}) for k in (0, 75)}
    for status, process in running.items():
        process.join()
        assert process.exitcode == status
        found = json.loads((tmp_path / f"{status}.json").read_text())
        assert (found["mark"], found["leads"], found["parent"]) == (f"mark {status}", True, os.getpid())
        assert found["threads"] == 3
        assert set(found["blocked"]) >= {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}  # until it listens
    assert (dict(os.environ), torch.get_num_threads()) == (before, threads)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.skipif(not processes.AUTOGROUP.exists(), reason="no autogroups: Linux's alone, where they are switched on")
def test_a_process_is_as_nice_to_other_sessions_as_its_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "nice", lambda increment: 7)
    processes.start(lambda: (tmp_path / "group").write_text(processes.AUTOGROUP.read_text()) and 0, {}).join()
    assert (tmp_path / "group").read_text().endswith("nice 7\n")


def test_how_a_process_ends_is_its_own(capfd):
    ends = [lambda: 1 // 0, lambda: os.kill(os.getpid(), 9), lambda: time.sleep(0.5)]
    running = [processes.start(work, {}) for work in ends]
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [1, -9, 0]
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_what_is_imported_beforehand_touches_no_device_and_starts_no_thread():
    code = """
import os, sys, torch
def refuse(*_): raise AssertionError("a device was asked for")
torch._C._cuda_init = torch._C._cuda_getDeviceCount = torch.cuda._lazy_init = torch.cuda.is_available = refuse
from normloss.sweeps import processes
processes.preload()
assert "normloss.training.trainer" in sys.modules and "torch._dynamo" in sys.modules
print(len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 1)
"""
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=one_thread)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) == 1


# what a run of a sweep came to ---------------------------------------------------------------------

WORDS = ["-m", "dataset=digits", "model=resnet8", "train.epochs=1", "train.milestones=[]"]


def members(store: Path, *words: str) -> list[Member]:
    return [Member(*run) for run in plan([*WORDS, f"store={store}", *words])]


def write_done(member: Member) -> None:
    member.folder.mkdir(parents=True, exist_ok=True)
    final = dict.fromkeys(records.FINAL, 0) | {"id": member.cfg.id, "config": trained_config(member.cfg.stored())}
    (member.folder / "DONE").write_text(json.dumps(final))


@pytest.mark.parametrize(
    ("code", "status", "outcome"),
    [(0, 1, "failed: an internal error"), (2, 2, "rejected: wrong config or missing data"), (3, 3, "diverged"),
     (75, 75, "stopped: rerun to resume"), (-9, 1, "killed by SIGKILL: rerun to resume")],
)  # fmt: skip
def test_a_run_is_done_if_its_done_is_there_and_not_by_its_exit_status(tmp_path, code, status, outcome):
    (member,) = members(tmp_path)
    member.end(code)
    assert (member.status, member.outcome) == (status, outcome)
    write_done(member)
    member.end(code)
    assert (member.status, member.outcome) == (0, "done")
    (again,) = members(tmp_path)
    assert (again.status, again.outcome) == (0, "done before")


def test_with_restart_a_done_counts_that_was_written_since(tmp_path):
    write_done(members(tmp_path)[0])
    (member,) = members(tmp_path, "restart=true")
    assert member.status is None
    member.end(0)
    assert member.status == 1  # it left the old one
    os.utime(member.folder / "DONE", ns=(0, 0))
    member.end(0)
    assert member.status == 0


AGAIN = " and the same command would diverge again: change train.lr"


@pytest.mark.parametrize(
    ("statuses", "words", "line"),
    [
        ([0, 0], [], "2 of 2 runs done"),
        ([0, 75], [], "1 of 2 runs done; rerun the command to resume"),
        ([None, 3], [], f"0 of 2 runs done; 1 diverged{AGAIN} or reg.lam; rerun the command to resume"),
        ([3, 3], [], f"0 of 2 runs done; all diverged{AGAIN} or reg.lam"),
        ([3, 3], ["reg=none"], f"0 of 2 runs done; all diverged{AGAIN}"),
    ],
)  # fmt: skip
def test_the_last_line_says_what_to_do(tmp_path, statuses, words, line):
    found = members(tmp_path, "seed=0,1", *words)
    for member, status in zip(found, statuses, strict=True):
        member.status = status
    assert total(found) == line


def test_a_trial_that_is_not_tried_again_is_counted_without_advice(tmp_path):
    found = members(tmp_path, "seed=0,1")
    for member, status in zip(found, [0, 3], strict=True):
        member.status = status
    assert total(found, again={found[0].cfg.id}) == "1 of 2 runs done; 1 diverged and is not tried again"


def test_each_line_of_a_sweep_has_the_swept_key_and_no_other(tmp_path):
    found = members(tmp_path, "reg=none", "seed=0,1", "train.lr=0.1,0.2", "model.init=fan_in,fan_out")
    lines = [re.split("  +", line)[1:] for line in report(found).splitlines()[:-1]]
    assert sorted(lines) == [
        [f"digits resnet8 none seed={seed} init={init} lr={lr}", "not started"]
        for seed in (0, 1) for init in ("fan_in", "fan_out") for lr in (0.1, 0.2)
    ]  # fmt: skip


# sweeps ----------------------------------------------------------------------------------------------

LENGTH = ["train.epochs=1", "train.max_steps=6", "train.eval_batches=1"]


@pytest.mark.slow
def test_a_member_is_the_run_that_it_is_alone_and_starts_sooner(tmp_path):
    """Dropout draws from torch's generator as it trains."""
    sweep = end(start("-m", *DROPOUT, *LENGTH, "seed=0,1", f"store={tmp_path / 'sweep'}", "hydra.launcher.jobs=2"))
    assert sweep.status == 0, sweep.err
    assert end(start(*DROPOUT, *LENGTH, "seed=1", f"store={tmp_path / 'alone'}")).status == 0
    (alone,) = records.load_runs(tmp_path / "alone")
    member = records.load_run(tmp_path / "sweep" / alone.id)
    assert [timeless(epoch) for epoch in member.epochs] == [timeless(epoch) for epoch in alone.epochs]
    assert (member.steps()[1] == alone.steps()[1]).all()
    assert member.meta["start_seconds"] < alone.meta["start_seconds"] / 2  # CPU seconds to the first step


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="looks into /proc")
def test_members_outlive_each_other_and_save_when_their_sweep_is_killed(tmp_path):
    words = [*DROPOUT, "train.epochs=9", "checkpoint_minutes=99", f"store={tmp_path}"]
    sweep = start("-m", *words, "seed=0,1,2", "hydra.launcher.jobs=3")

    def statuses() -> list[dict]:
        return [files.read_json(path) for path in sorted(tmp_path.glob("*/status.json"))]

    def training() -> bool:
        there = list(tmp_path.glob("*/meta.json"))
        return len(there) == 3 and all("start_seconds" in (files.read_json(path) or {}) for path in there)

    wait_until(training, sweep)
    time.sleep(1)  # in their loops
    first, *others = (status["pid"] for status in statuses())
    assert len({first, *others, sweep.pid}) == 4
    os.kill(first, signal.SIGKILL)
    time.sleep(0.5)
    assert all(alive(pid) for pid in (*others, sweep.pid))
    sweep.kill()
    sweep.communicate()  # the members' output ends too
    left = statuses()
    assert [status["state"] for status in left] == ["running", "incomplete", "incomplete"]  # the first could not say
    assert all("end of its sweep" in status["error"] and status["saved"] for status in left[1:])
