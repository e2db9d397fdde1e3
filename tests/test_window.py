"""Budgets: what comes first, what is expected, when runs leave; queues; and runs that travel between machines."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from normloss.runs.records import load_runs
from normloss.signals import StopRequest
from normloss.sweeps import budget
from normloss.sweeps.budget import Window, arrange, outlook, seconds_left, share_done
from normloss.sweeps.durations import Pace, kind, measure_paces, run_seconds, total_steps
from normloss.sweeps.members import expand, read_queue
from tests.conftest import ROOT

DIGITS = ["dataset=digits", "model=resnet8", "wandb.mode=disabled", "threads=1", "device=cpu"]


def start(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, capture_output=True, text=True)


# work --------------------------------------------------------------------------------------------


def test_a_runs_work_is_its_steps_and_a_third_for_each_test_image(config):
    cfg = config("dataset=cifar10", "model=resnet110", "reg=nl")
    assert total_steps(cfg) == 164 * 391  # 390 whole batches of 128 and one of 80
    assert run_seconds(cfg, 0.1) == pytest.approx(164 * (391 * 0.1 + 10_000 / 128 / 3 * 0.1))
    trial = config("dataset=cifar10", "model=resnet110", "train.max_steps=9")
    assert total_steps(trial) == 9


def test_a_step_is_timed_on_this_device(config):
    digits = [config(*DIGITS, "reg=nl", f"seed={seed}") for seed in (0, 1)]
    assert measure_paces([]) == {}
    (key,) = paces = measure_paces(digits)  # one kind, timed once
    assert key == ("digits", "resnet8", "nl", 64, "fp32")
    assert 0.001 < paces[key].step < 5
    assert 0.5 < paces[key].start < 100  # torch is imported


# what comes first --------------------------------------------------------------------------------


def status(cfg, saved=0, done=False):
    path = Path(cfg.store) / cfg.id
    path.mkdir(parents=True)
    (path / "status.json").write_text(json.dumps({"state": "incomplete", "epoch": 0, "saved": saved}))
    if done:
        (path / "DONE").write_text("{}")


def test_nearly_finished_runs_then_pairs_seed_by_seed(tmp_path):
    runs = expand(["experiment=table1", "model=resnet110", f"store={tmp_path}"])
    by_name = {(cfg.reg.name, cfg.seed): cfg for cfg in runs}
    steps = 164 * 391
    status(by_name["nl", 3], saved=steps // 2)
    status(by_name["wd", 4], saved=steps - 1)
    assert share_done(by_name["nl", 3]) == pytest.approx(0.5)
    order = [(cfg.reg.name, cfg.seed) for cfg in arrange(list(reversed(runs)))]
    assert order[:2] == [("wd", 4), ("nl", 3)]
    assert [seed for _, seed in order[2:]] == [0, 0, 1, 1, 2, 2, 3, 4]


def an_hour_a_run(runs) -> dict[tuple, Pace]:
    return {kind(cfg): Pace(3600 / run_seconds(cfg, 1.0)) for cfg in runs}


def test_the_outlook_counts_lanes_and_what_is_left(tmp_path):
    runs = expand(["experiment=table1", "model=resnet110", "seed=0,1", f"store={tmp_path}"])
    paces = an_hour_a_run(runs)
    status(runs[0], saved=0, done=True)
    text = outlook(runs[1:], paces, jobs=1, seconds=1.5 * 3600)
    assert text == "expects to finish 1 of 3 runs and to take 1 on; 3.0 h of work left on this machine"
    text = outlook(runs[1:], paces, jobs=2, seconds=1.5 * 3600)
    assert text == "expects to finish 2 of 3 runs and to take 1 on; 1.5 h of work left on this machine"
    assert outlook(runs[1:], {}, jobs=1) == "nothing left that is known, and 3 runs that cannot be told"


def test_what_is_left_of_a_run_begins_with_its_start(tmp_path):
    runs = expand(["experiment=table1", "model=resnet110", "reg=nl", "seed=0,1", f"store={tmp_path}"])
    (pace,) = an_hour_a_run(runs).values()
    paces = {kind(runs[0]): replace(pace, start=100.0)}
    assert seconds_left(runs[0], paces) == pytest.approx(3700)
    status(runs[1], saved=total_steps(runs[1]), done=True)
    assert seconds_left(runs[1], paces) == 0


# when to leave -----------------------------------------------------------------------------------


def test_a_window_ends_in_time_to_save(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    assert Window(2, 1000.0).deadline == 1000 + 120 - budget.SAVE_SECONDS
    assert Window(2, 1000.0).open
    assert not Window(0.4, 1000.0).open  # 24 seconds: not enough to start a run and save it
    assert budget.deadline(None) is None


def test_a_deadline_is_a_request_to_stop(monkeypatch):
    assert not StopRequest(time.time() + 60)
    stop = StopRequest(time.time() - 1)
    assert stop
    assert stop.name == "the end of its budget"
    monkeypatch.setenv("NORMLOSS_SWEEP", json.dumps({"pid": os.getppid(), "deadline": time.time() + 60}))
    assert not StopRequest(time.time() - 1)  # a member has its sweep's


def test_a_sweep_with_a_budget_says_what_it_expects_and_stops_by_itself(tmp_path):
    began = time.monotonic()
    words = ["-m", *DIGITS, "reg=wd,nl", "train.epochs=400", "train.milestones=[]"]
    ran = start(*words, f"store={tmp_path}", "budget_minutes=0.75")
    assert ran.returncode == 75
    assert time.monotonic() - began < 60 * 0.75 + 15
    lines = ran.stdout.splitlines()
    assert lines[1].startswith("budget of 0.75 minutes: expects to finish 0 of 2 runs and to take")
    assert "of work left on this machine" in lines[-1]
    assert lines[-1].startswith("after 0.")
    assert {run.state for run in load_runs(tmp_path)} <= {"incomplete"}


# queues ------------------------------------------------------------------------------------------


def test_the_queue_of_the_paper_is_whole(tmp_path):
    lines = read_queue(ROOT / "results" / "queue.yaml")
    named = {line[0] for line in lines if line[0].startswith("experiment=")}
    assert all(len(expand([*line, f"store={tmp_path}"])) for line in lines[:3])
    first = {cfg.reg.name for line in lines[:3] for cfg in expand([*line, f"store={tmp_path}"])}
    paper = "none wd nl wn pbwn oni olm olm_l1 so dso mc srip sn oblique stiefel jac"  # its own and those it discusses
    assert first == set(paper.split())  # each once on ResNet110, before the wide network
    there = {f"experiment={path.stem}" for path in (ROOT / "configs" / "experiment").glob("*.yaml")}
    assert named <= there
    # ImageNet's needs data that nobody fetches by the way
    elsewhere = {name for name in there if "=small_" in name}
    assert there - named == {"experiment=demo", "experiment=table3"} | elsewhere


def test_a_queue_is_one_sweep_without_doubles(tmp_path):
    (tmp_path / "q.yaml").write_text("- dataset=digits reg=nl seed=3\n- experiment=demo seed=3\n")
    words = [*DIGITS[1:], "debug=smoke", f"store={tmp_path / 'runs'}"]
    ran = start(f"queue={tmp_path / 'q.yaml'}", *words)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("sweep of 2 runs, 0 done before")
    assert "2 of 2 runs done" in ran.stdout


@pytest.mark.parametrize("text", [None, "experiment: table1", "- 3", "[", "[]"])
def test_a_queue_that_is_none_is_refused_in_a_line(tmp_path, text):
    if text is not None:
        (tmp_path / "q.yaml").write_text(text)
    ran = start(f"queue={tmp_path / 'q.yaml'}")
    assert ran.returncode == 2
    assert ran.stderr.startswith("normloss: queue: must ")
    assert ran.stderr.count("\n") == 1
