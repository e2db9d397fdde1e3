"""How long a run takes: finished runs like it say so, else the run itself."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from normloss.config import trained_config
from normloss.runs.records import load_runs
from normloss.training import progress
from normloss.training.durations import Durations, like, share_done, spell
from normloss.training.progress import Progress, State
from tests.runs_support import write_run

CIFAR = ("dataset=cifar10", "model=resnet110")


def test_the_share_that_is_done_is_that_of_the_checkpoint(config, tmp_path):
    cfg, cut = config(*CIFAR, f"store={tmp_path}"), config(*CIFAR, "train.max_steps=100", f"store={tmp_path}")
    for each, status in ((cfg, {"epoch": 41, "saved": 41 * 391}), (cut, {"epoch": 0, "saved": 20})):
        (tmp_path / each.id).mkdir()
        (tmp_path / each.id / "status.json").write_text(json.dumps(status))
    assert (share_done(cfg), share_done(cut)) == (0.25, 0.2)
    write_run(tmp_path / "done", cfg, 5.0)
    assert share_done(cfg.model_copy(update={"store": str(tmp_path / "done")})) == 1


@pytest.mark.parametrize(
    "word", ["model.width=1", "train.batch_size=32", "train.micro_batch=32", "train.precision=bf16"]
)
def test_networks_of_another_width_batch_or_precision_are_not_alike_and_other_seeds_and_lams_are(config, word):
    words = ("dataset=digits", "model=wrn16_4", "recipe=digits_resnet8")
    first, other, same = (config(*words, *more).stored() for more in ([], [word], ["seed=3", "reg.lam=0.5"]))
    assert like(other) != like(first) == like(same)


def test_the_newest_finished_run_like_it_and_of_its_method_says_how_long(config, tmp_path):
    for reg, seed, seconds in (("wd", 0, 50.0), ("nl", 0, 70.0)):
        write_run(tmp_path, config(*CIFAR, f"reg={reg}", f"seed={seed}"), 6.0, epochs=164, seconds=seconds)
    times = Durations(load_runs(tmp_path))
    own = times.estimate(config(*CIFAR, "reg=nl", "seed=9"))
    assert own.training == pytest.approx(164 * 70)
    assert str(own) == f"about 3.2 h per run, as {config(*CIFAR, 'reg=nl').id} (nl) took on GTX 1080 Ti"
    assert times.estimate(config(*CIFAR, "reg=so")).training in (pytest.approx(164 * 50), own.training)  # both as new
    assert times.estimate(config("dataset=cifar10", "model=wrn28_10")) is None
    assert Durations([]).estimate(config(*CIFAR)) is None
    archived = [replace(record, config=trained_config(record.config)) for record in load_runs(tmp_path)]
    assert Durations(archived).estimate(config(*CIFAR, "reg=nl")).training == own.training
    half = times.estimate(config(*CIFAR, "reg=nl", "train.epochs=82", "train.milestones=[]"))
    assert half.training == pytest.approx(82 * 70)
    short = times.estimate(config(*CIFAR, "reg=nl", "train.max_steps=40"))  # of 40 in an epoch
    assert short.training == pytest.approx(70)


def test_a_run_like_no_finished_one_is_estimated_by_its_own_epochs(config, tmp_path):
    cfg = config(*CIFAR, "reg=nl")
    write_run(tmp_path, cfg, 6.0, epochs=10)  # 90 s each
    (tmp_path / cfg.id / "DONE").unlink()
    (tmp_path / cfg.id / "status.json").write_text('{"state": "incomplete"}')
    times = Durations(load_runs(tmp_path))
    assert times.estimate(cfg).training == pytest.approx(164 * 90)
    assert times.estimate(config(*CIFAR, "reg=nl", "seed=1")) is None


@pytest.mark.parametrize("word", ["train.max_steps=20", "train.eval_batches=1"])
def test_truncated_runs_are_no_evidence(config, tmp_path, word):
    write_run(tmp_path, config(*CIFAR, word), 6.0, epochs=164)
    assert Durations(load_runs(tmp_path)).estimate(config(*CIFAR)) is None


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.seconds)
    monkeypatch.setattr(progress.time, "process_time", lambda: 8.0)
    return now


@pytest.mark.parametrize(
    ("place", "left"),
    [
        (None, "30 s left"),
        # 30 s of this run, then two more one after the other: 8 s to start and 45 s to train each
        ({"member": 2, "members": 6, "waiting": 3, "jobs": 2, "label": "nl"}, "30 s left, sweep 2/6 about 2 min"),
    ],
)
def test_the_time_left_follows_from_the_steps_so_far(config, clock, monkeypatch, place, left):
    monkeypatch.delenv("NORMLOSS_SWEEP", raising=False)
    if place:
        monkeypatch.setenv("NORMLOSS_SWEEP", json.dumps(place))
    bar = Progress(config(*CIFAR), last_step=30, first_step=0)
    clock.seconds += 15.0
    bar.now_step = 10
    assert bar.left() == left


def test_a_line_within_an_epoch_shows_the_means_of_its_last_20_steps(config, clock, capsys):
    steps = Progress(config(*CIFAR), last_step=100, first_step=0)
    ce, wrong = [torch.tensor(float(k)) for k in range(25)], [torch.tensor(128)] * 5 + [torch.tensor(32)] * 20
    state = State(epoch=1, step=5, ce=ce, wrong=wrong)
    with steps.training(state, torch.device("cpu")):
        clock.seconds += 10.0
        state.step = 25
        steps.step(state)
    assert capsys.readouterr().out.endswith("  epoch 2/164  ce 14.500  error 25.0 %  256 images/s  30 s left\n")


def test_durations_are_spelled_in_one_way():
    hour, day = 3600, 86400
    spelled = [spell(seconds) for seconds in (0.4, 40, 720, 4.6 * hour, 47 * hour, 3.1 * day, 41 * day)]
    assert spelled == ["0 s", "40 s", "12 min", "4.6 h", "47.0 h", "3.1 days", "41 days"]
