"""How long a run takes: its work, and what a step, a finished run or the run itself says of its seconds."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from normloss.config import science
from normloss.runs.records import FINAL, load_run, load_runs
from normloss.training import durations, progress
from normloss.training.durations import (
    Estimate,
    FinishedTimes,
    StepTimes,
    Work,
    kind,
    known_work,
    seconds_of_work,
    share_done,
    spell,
    total_steps,
    work,
)  # fmt: skip
from normloss.training.progress import Progress
from tests.runs_support import write_run

CIFAR = ("dataset=cifar10", "model=resnet110")


def test_a_runs_work_is_its_steps_and_a_third_for_each_image_that_is_evaluated(config):
    cfg = config(*CIFAR, "reg=nl")
    assert known_work(cfg).steps == 164 * 391  # 390 whole batches of 128 and one of 80
    assert known_work(cfg).total == pytest.approx(164 * (391 + 10_000 / 128 / 3))


def test_evaluation_counts_as_often_as_it_happens(config):
    trial = config(*CIFAR, "train.max_steps=400")  # nine steps of the second epoch
    assert known_work(trial).total == pytest.approx(400 + 2 * 10_000 / 128 / 3)
    cut = config(*CIFAR, "train.max_steps=9", "train.eval_batches=1")
    assert known_work(cut).total == pytest.approx(9 + 4 / 3)  # a batch of four times 128


def test_an_image_alone_is_no_batch(config):
    cfg = config("dataset=digits", "model=resnet8", "train.batch_size=4")  # 1,437 images
    assert known_work(cfg).per_epoch == 359
    assert work(cfg, 8, 0).steps == 2 * cfg.train.epochs
    assert total_steps(cfg, per_epoch=10) == 10 * cfg.train.epochs


def test_what_is_done_includes_the_evaluations_so_far():
    whole = Work(steps=25, per_epoch=10, evaluation=5.0)
    assert whole.total == 25 + 3 * 5
    assert [whole.until(step) for step in (0, 9, 10, 24, 25)] == [0, 9, 15, 34, 40]


def test_the_share_that_is_done_is_that_of_the_checkpoint(config, tmp_path):
    cfg = config(*CIFAR, f"store={tmp_path}")
    assert share_done(cfg) == 0
    (tmp_path / cfg.id).mkdir()
    (tmp_path / cfg.id / "status.json").write_text(json.dumps({"saved": 82 * 391}))
    assert share_done(cfg) == pytest.approx(0.5)
    (tmp_path / cfg.id / "DONE").write_text(
        json.dumps(dict.fromkeys(FINAL, 0) | {"id": cfg.id, "config": science(cfg.stored())})
    )
    assert share_done(cfg) == 1


def test_images_that_nobody_counted_are_told_by_epochs(config, tmp_path):
    folder = ("dataset=folder", "dataset.num_classes=3", "model=resnet8", "recipe=cifar10_resnet110")
    cfg = config(*folder, f"store={tmp_path}")
    assert known_work(cfg) is None
    assert StepTimes({kind(cfg): 1.0}).estimate(cfg) is None
    (tmp_path / cfg.id).mkdir()
    (tmp_path / cfg.id / "status.json").write_text(json.dumps({"epoch": 41}))
    assert share_done(cfg) == 0.25


# from a step -------------------------------------------------------------------------------------


def test_a_timed_step_says_how_long_the_run_is(config):
    nl, wd, large = (config(*CIFAR, word) for word in ("reg=nl", "reg=wd", "train.batch_size=256"))
    times = StepTimes({kind(nl): 0.1}, start=7.0)
    own = times.estimate(nl)
    assert own.seconds == pytest.approx(7 + 0.1 * 164 * (391 + 10_000 / 128 / 3))
    assert (own.borrowed, str(own)) == (False, "about 1.9 h per run, timed here")
    borrowed = times.estimate(wd)
    assert (borrowed.seconds, borrowed.borrowed) == (own.seconds, True)
    assert str(borrowed) == "about 1.9 h per run, as reg=nl was timed here"
    assert times.estimate(large) is None


def test_networks_of_one_name_and_other_widths_are_not_alike(config):
    words = ("dataset=digits", "model=wrn16_4", "recipe=digits_resnet8")
    assert kind(config(*words)) != kind(config(*words, "model.width=1"))
    assert kind(config(*words)) == kind(config(*words, "seed=3", "reg.lam=0.5"))


def test_of_a_run_that_is_under_way_its_start_is_to_come_again():
    whole = Estimate(training=100.0, start=10.0, source="")
    assert [whole.left(done) for done in (0, 0.5, 1)] == [110, 60, 0]


# from finished runs ------------------------------------------------------------------------------


def test_the_newest_finished_run_like_it_and_of_its_method_says_how_long(config, tmp_path):
    for reg, seed, seconds in (("wd", 0, 50.0), ("nl", 0, 70.0)):
        write_run(tmp_path, config(*CIFAR, f"reg={reg}", f"seed={seed}"), 6.0, epochs=164, seconds=seconds)
    records = load_runs(tmp_path)
    own = FinishedTimes(records).estimate(config(*CIFAR, "reg=nl", "seed=9"))
    assert (own.training, own.borrowed) == (pytest.approx(164 * 70), False)
    assert str(own) == f"about 3.2 h per run, as {config(*CIFAR, 'reg=nl').id} took on GTX 1080 Ti"
    assert FinishedTimes(records).estimate(config(*CIFAR, "reg=so")).borrowed
    assert FinishedTimes(records).estimate(config("dataset=cifar10", "model=wrn28_10")) is None
    assert FinishedTimes([]).estimate(config(*CIFAR)) is None
    archived = [replace(record, config=science(record.config)) for record in records]
    assert FinishedTimes(archived).estimate(config(*CIFAR, "reg=nl")).training == own.training
    half = FinishedTimes(records).estimate(config(*CIFAR, "reg=nl", "train.epochs=82", "train.milestones=[]"))
    assert half.training == pytest.approx(82 * 70)
    short = FinishedTimes(records).estimate(config(*CIFAR, "reg=nl", "train.max_steps=391"))
    assert short.training == pytest.approx(70)


def test_trials_are_no_evidence(config, tmp_path):
    for word in ("train.max_steps=20", "train.eval_batches=1"):
        write_run(tmp_path, config(*CIFAR, word), 6.0, epochs=164)
    assert FinishedTimes(load_runs(tmp_path)).estimate(config(*CIFAR)) is None


def test_a_run_that_shared_its_device_took_its_share_of_the_time(config, tmp_path):
    cfg = config(*CIFAR, "reg=nl")
    write_run(tmp_path, cfg, 6.0, epochs=164, seconds=360.0, together=5)  # as version 0.1.0 could
    known = FinishedTimes(load_runs(tmp_path)).estimate(cfg)
    assert known.seconds == pytest.approx(164 * 360 / 5)
    assert str(known) == f"about 3.3 h per run, as {cfg.id} took on GTX 1080 Ti, 5 seeds at once"


def test_a_run_notes_how_long_its_process_took_to_its_first_step(config, tmp_path):
    import train as script
    from normloss.runs import store

    cfg = config("dataset=digits", "model=resnet8", "debug=smoke", "device=cpu", "threads=1", f"store={tmp_path}")
    script.train(cfg, store.open_run(cfg))
    record = load_run(tmp_path / cfg.id)
    assert record.meta["start_seconds"] > 0
    long = config("dataset=digits", "model=resnet8", "device=cpu", f"store={tmp_path}")
    assert FinishedTimes([record]).estimate(long) is None  # a smoke run is a trial


# from the run itself -----------------------------------------------------------------------------


def test_a_unit_of_work_takes_what_those_before_it_took():
    whole = Work(steps=30, per_epoch=10, evaluation=5.0)
    assert seconds_of_work(whole, first_step=0, step=10, seconds=30.0) == 2.0  # ten steps and an evaluation
    assert seconds_of_work(whole, first_step=10, step=15, seconds=5.0) == 1.0
    assert seconds_of_work(whole, first_step=10, step=10, seconds=5.0) == 0.0


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.seconds)
    monkeypatch.setattr(progress.time, "process_time", lambda: 8.0)
    return now


def test_the_time_left_counts_evaluations_to_come(config, clock, monkeypatch):
    monkeypatch.delenv("NORMLOSS_SWEEP", raising=False)
    bar = Progress(config(*CIFAR), Work(steps=30, per_epoch=10, evaluation=5.0), 0, torch.device("cpu"))
    clock.seconds += 15.0
    bar.now_step = 10
    assert bar.left() == "30 s left"


def test_the_time_left_of_a_sweep_counts_the_starts_of_what_waits(config, clock, monkeypatch):
    place = {"member": 2, "members": 6, "waiting": 3, "jobs": 2, "pid": 1}
    monkeypatch.setenv("NORMLOSS_SWEEP", json.dumps(place))
    bar = Progress(config(*CIFAR), Work(steps=30, per_epoch=10, evaluation=5.0), 0, torch.device("cpu"))
    clock.seconds += 15.0
    bar.now_step = 10
    # 30 s of this run, then two more one after the other: 8 s to start and 45 s to train each
    assert bar.left() == "30 s left, sweep 2/6 about 2 min"


def test_a_long_run_on_a_cpu_says_so_once_and_names_smaller_ones(config, clock, capsys):
    steps = Work(steps=41 * 86400 // 6 + 1, per_epoch=10**9, evaluation=0.0)
    bar = Progress(config("model=wrn28_10"), steps, 0, torch.device("cpu"))
    bar.warn(0)
    assert capsys.readouterr().out == ""
    clock.seconds += 6.0
    bar.warn(1)
    bar.warn(1)
    said = capsys.readouterr().out
    assert said.count("this takes about 41 days on this CPU (Ctrl-C saves and leaves); smaller commands") == 1
    assert "dataset=digits" in said
    digits = Progress(config("dataset=digits", "model=resnet8"), steps, 0, torch.device("cpu"))
    clock.seconds += 6.0
    digits.warn(1)
    assert "smaller" not in capsys.readouterr().out  # it is the smallest already
    cuda = Progress(config("model=wrn28_10"), steps, 0, torch.device("cuda"))
    clock.seconds += 6.0
    cuda.warn(1)
    assert capsys.readouterr().out == ""


def test_durations_are_spelled_in_one_way():
    hour, day = 3600, 86400
    spelled = [spell(seconds) for seconds in (0.4, 40, 720, 4.6 * hour, 47 * hour, 3.1 * day, 41 * day)]
    assert spelled == ["0 s", "40 s", "12 min", "4.6 h", "47.0 h", "3.1 days", "41 days"]
    assert pytest.approx(1 / 3) == durations.FORWARD
