"""Processes of a sweep: forked once torch is there, each of its own all the same, none in the way of another."""

import json
import os
import signal
from pathlib import Path

import pytest

from normloss.config import trained_config
from normloss.runs import files, records
from normloss.sweeps import processes
from normloss.sweeps.composing import plan
from normloss.sweeps.members import Member, total, worst
from tests import forked
from tests.forked import DROPOUT, SAVE_OFTEN, Command, alive, timeless, wait_until


@pytest.mark.skipif(not processes.AUTOGROUP.exists(), reason="no autogroups: Linux's alone, where they are switched on")
def test_a_process_is_as_nice_to_other_sessions_as_its_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "nice", lambda increment: 7)
    processes.start(lambda: (tmp_path / "group").write_text(processes.AUTOGROUP.read_text()) and 0, {}).join()
    assert (tmp_path / "group").read_text().endswith("nice 7\n")


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
    assert [(again.status, again.outcome) for again in members(tmp_path)] == [(0, "done before")]


def test_with_restart_a_done_counts_that_was_written_since(tmp_path):
    write_done(members(tmp_path)[0])
    (member,) = members(tmp_path, "restart=true")
    assert member.status is None
    member.end(0)
    assert member.status == 1  # it left the old one
    os.utime(member.folder / "DONE", ns=(0, 0))
    member.end(0)
    assert member.status == 0


@pytest.mark.parametrize(
    ("statuses", "again", "status", "line"),
    [
        ([0, 0], True, 0, "2 of 2 runs done"),
        ([0, 75], True, 75, "1 of 2 runs done; rerun the command to resume"),
        ([3, 3], True, 3, "0 of 2 runs done; 2 diverged and would again: change train.lr or reg.lam"),
        ([3, 0], False, 0, "1 of 2 runs done; 1 diverged, not tried again"),
        ([None, 3], False, 75, "0 of 2 runs done; 1 diverged, not tried again; rerun the command to resume"),
    ],
)
def test_the_last_line_says_what_to_do(tmp_path, statuses, again, status, line):
    found = members(tmp_path, "seed=0,1")
    for member, each in zip(found, statuses, strict=True):
        member.status, member.again = each, again
    assert (total(found), worst(found)) == (line, status)


LENGTH = ["train.epochs=1", "train.max_steps=6", "train.eval_batches=1"]


def test_a_member_is_the_run_that_it_is_alone(tmp_path):
    """Dropout draws from torch's generator as it trains."""
    many = ["-m", *DROPOUT, *LENGTH, "seed=0,1", "hydra.launcher.jobs=2", f"store={tmp_path / 'sweep'}"]
    one = [*DROPOUT, *LENGTH, "seed=1", f"store={tmp_path / 'alone'}"]
    for words in (many, one):
        process = Command(tmp_path / "log", *words)
        assert process.wait() == 0, process.text()
    (alone,) = records.load_runs(tmp_path / "alone")
    member = records.load_run(tmp_path / "sweep" / alone.id)
    assert [timeless(epoch) for epoch in member.epochs] == [timeless(epoch) for epoch in alone.epochs]
    assert (member.steps()[1] == alone.steps()[1]).all()


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="looks into /proc")
def test_members_save_when_their_sweep_is_killed(tmp_path):
    words = [*DROPOUT, "train.epochs=9", f"store={tmp_path / 'runs'}", SAVE_OFTEN]
    sweep = Command(tmp_path / "log", "-m", *words, "seed=0,1,2", "hydra.launcher.jobs=3")

    def statuses() -> list[dict]:
        return [files.read_json(path) for path in sorted((tmp_path / "runs").glob("*/status.json"))]

    wait_until(lambda: [status["step"] > 0 for status in statuses()] == [True] * 3, sweep)
    pids = [status["pid"] for status in statuses()]
    assert len({*pids, sweep.pid}) == 4
    assert sorted(pids) == sorted(forked.members(sweep))
    sweep.send(signal.SIGKILL)
    wait_until(lambda: not any(map(alive, pids)))
    for left in statuses():
        assert left["state"] == "incomplete"
        assert "end of its sweep" in left["error"] and left["saved"]
    sweep.wait()
