"""What a command line composes to, and what of it each member of a sweep is given; where Hydra's insides are used."""

import subprocess
import sys

import pytest
import yaml

from normloss.errors import UserError
from normloss.runs.records import load_runs
from normloss.sweeps.composing import _flags, compositions, expand, launcher_jobs, passed_on
from normloss.sweeps.hydra_internals import split_sweep
from tests.conftest import ROOT


def test_hydras_insides_are_still_what_is_used_of_them():
    """What normloss.sweeps.hydra_internals takes from it: if this fails, a version of Hydra has moved it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(["reg=wd,nl", "seed=range(0,2)", "train.lr=0.1"])
    assert split_sweep(parsed) == [
        ["reg=wd", "seed=0", "train.lr=0.1"], ["reg=wd", "seed=1", "train.lr=0.1"],
        ["reg=nl", "seed=0", "train.lr=0.1"], ["reg=nl", "seed=1", "train.lr=0.1"],
    ]  # fmt: skip
    words = ["-m", "reg=wd,nl", "--config-dir", "mine", "seed=1", "-cn", "other", "hydra.launcher.jobs=2"]
    flags, overrides = _flags(words)
    assert flags == {"config_dir": "mine", "config_name": "other"}
    assert sorted(overrides) == sorted(["reg=wd,nl", "seed=1", "hydra.launcher.jobs=2"])


def test_one_file_leans_on_hydras_insides():
    sources = [*ROOT.glob("normloss/**/*.py"), *ROOT.glob("scripts/*.py"), *ROOT.glob("hydra_plugins/*.py")]
    assert [path.name for path in sources if "import hydra._internal" in (text := path.read_text())
            or "from hydra._internal" in text] == ["hydra_internals.py"]  # fmt: skip


def test_seeds_share_a_composition_and_each_has_its_own():
    runs = compositions(["experiment=demo", "seed=3,4", "train.epochs=2"])
    assert [(raw.seed, raw.reg.name, raw.train.epochs) for _, raw in runs] == [
        (3, "wd", 2), (3, "nl", 2), (4, "wd", 2), (4, "nl", 2),
    ]  # fmt: skip


def test_members_are_given_what_concerns_them():
    words = ["-m", "reg=wd,nl", "--config-dir", "mine", "hydra.launcher.jobs=2", "hydra.searchpath=[file:///there]"]
    assert passed_on(words) == ["--config-dir", "mine", "hydra.searchpath=[file:///there]"]
    assert passed_on(["experiment=table1", "hydra.mode=MULTIRUN", "hydra/launcher=local"]) == []


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_jobs_must_be_a_positive_number(value):
    with pytest.raises(UserError, match=f"hydra.launcher.jobs: must be a whole number of at least 1, got '{value}'"):
        launcher_jobs(["queue=q.yaml", f"hydra.launcher.jobs={value}"])
    assert launcher_jobs(["queue=q.yaml"]) is None  # one for each GPU


@pytest.fixture
def own_configs(tmp_path):
    """A folder of a user's with an experiment of theirs."""
    folder = tmp_path / "mine"
    (folder / "experiment").mkdir(parents=True)
    text = {
        "defaults": [{"override /dataset": "digits"}, {"override /model": "resnet8"}],
        "hydra": {"mode": "MULTIRUN", "sweeper": {"params": {"seed": "5,6"}}},
        "train": {"epochs": 2, "milestones": []},
    }
    (folder / "experiment" / "own.yaml").write_text("# @package _global_\n" + yaml.safe_dump(text))
    return folder


def test_configs_of_ones_own_are_composed(own_configs):
    words = ["experiment=own", "--config-dir", str(own_configs)]
    assert [(cfg.dataset.name, cfg.seed, cfg.train.epochs) for cfg in expand(words)] == [
        ("digits", 5, 2), ("digits", 6, 2),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("how", ["sweep", "queue"])
def test_members_train_from_configs_of_ones_own(own_configs, tmp_path, how):
    (tmp_path / "q.yaml").write_text("- experiment=own\n")
    first = ["experiment=own"] if how == "sweep" else [f"queue={tmp_path / 'q.yaml'}"]
    words = [*first, "debug=smoke", f"store={tmp_path / 'runs'}", "device=cpu", "threads=1", "wandb.mode=disabled"]
    command = [sys.executable, str(ROOT / "train.py"), "--config-dir", str(own_configs), *words]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "2 of 2 runs done" in ran.stdout
    assert sorted(run.config["seed"] for run in load_runs(tmp_path / "runs")) == [5, 6]
