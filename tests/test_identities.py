"""What may never change: the ids of runs that exist, and that runs of version 0.1.0 are read, compared and go on.

tests/data/identities.json and runs_0.1.0.tar.xz were made with the code of commit 1ae07eb.
"""

import json
import tarfile
from pathlib import Path

import pytest
from conftest import ran

from normloss.config import CONFIGS, read_stored, run_id
from normloss.diagnostics import diagnostics, summary
from normloss.runs.records import load_run, load_runs
from normloss.runs.weights import load_checkpoint

DATA = Path(__file__).parent / "data"
FROZEN = json.loads((DATA / "identities.json").read_text())
ARCHIVED, EXPERIMENTS = FROZEN["archived"], FROZEN["experiments"]
DIGITS = ["dataset=digits", "model=resnet8"]
SHORT = ["train.epochs=2", "train.milestones=[1]"]
FINISHED, UNFINISHED = "f3db9b67", "9f444f44"


@pytest.fixture
def old_store(tmp_path):
    """A finished run and one stopped at step 30 of 46, as commit 1ae07eb left them."""
    with tarfile.open(DATA / "runs_0.1.0.tar.xz") as archive:
        archive.extractall(tmp_path / "runs", filter="data")
    (tmp_path / "runs" / f"{UNFINISHED}.json").rename(tmp_path / "undisturbed.json")
    return tmp_path / "runs"


@pytest.mark.parametrize("id", ARCHIVED)
def test_an_archived_config_has_its_id(id):
    assert run_id(ARCHIVED[id]) == id


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_stored_config_has_its_id(name):
    stored = EXPERIMENTS[name]["config"]
    assert run_id(stored) == read_stored(stored).id == EXPERIMENTS[name]["id"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_composing_gives_the_id(name, config):
    if not (CONFIGS / "experiment" / f"{name}.yaml").exists():
        pytest.skip("this experiment is gone")
    assert config(*EXPERIMENTS[name]["command"]).id == EXPERIMENTS[name]["id"]


def test_a_finished_run_of_then_is_done(old_store):
    said = ran("train.py", *DIGITS, *SHORT, "reg=wd", "train.momentum=0", f"store={old_store}").stdout
    assert f"run {FINISHED} (digits resnet8 wd lam=0.0001 seed=0) is done" in said


def test_an_unfinished_run_of_then_goes_on_and_ends_as_if_undisturbed(old_store):
    here = ["device=cpu", "threads=1", "wandb.mode=disabled", f"store={old_store}"]
    said = ran("train.py", *DIGITS, *SHORT, "reg=nl", "seed=1", *here).stdout
    assert "resuming at epoch 2, step 30" in said
    run = load_run(old_store / UNFINISHED)
    assert run.state == "done"
    assert run.meta["sessions"][1]["from_step"] == 30
    undisturbed = json.loads((old_store.parent / "undisturbed.json").read_text())
    # the last digits are those of another kind of CPU
    for key in ("train_ce", "test_ce", "penalty", "norm_mean", "sigma_max"):
        assert run.final[key] == pytest.approx(undisturbed[key], rel=1e-3), key
    assert run.final["steps"] == undisturbed["steps"] == 46


def test_runs_of_then_are_read_planned_and_compared(old_store, tmp_path):
    assert [(run.id, run.state) for run in load_runs(old_store)] == [(UNFINISHED, "incomplete"), (FINISHED, "done")]
    planned = ran("scripts/plan.py", "demo", *SHORT, "reg=nl", "seed=1", f"store={old_store}").stdout
    assert f"{UNFINISHED}  digits resnet8 nl lam=0.01 seed=1 batch=64  incomplete  epoch 1/2" in planned
    out = ["--store", str(old_store), "--out", str(tmp_path / "out")]
    assert "| wd λ=0.0001 |" in ran("scripts/compare.py", "dataset=digits", "train.momentum=0", *out).stdout


def test_the_weights_of_then_have_the_norms_that_were_logged(old_store):
    model, *_ = load_checkpoint(old_store / FINISHED)
    measured, final = summary(diagnostics(model)), load_run(old_store / FINISHED).final
    assert measured["norm_mean"] == pytest.approx(final["norm_mean"], rel=1e-6)
    assert measured["layer_norms"] == pytest.approx(final["layer_norms"], abs=2e-6)
