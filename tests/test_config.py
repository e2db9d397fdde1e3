"""Recipes against the paper's numbers typed independently, refusals in one line, run identity, schedules."""

import re
import signal
import sys

import pytest

import train
from normloss.config import CONFIGS, read_stored, run_id
from normloss.errors import exit_status
from normloss.signals import SIGNALS
from normloss.sweeps import tuning
from normloss.sweeps.composing import expand
from normloss.training.optimizer import lam_at, lr_at
from tests.conftest import ran

# dataset, model: epochs, milestones, gamma, batch, lambda of wd, lambda of nl   (sections V-C, V-D, V-E)
PAPER = {
    ("cifar10", "resnet110"): (164, [82, 123], 0.1, 128, 1e-4, 1e-2),
    ("cifar10", "wrn28_10"): (300, [53, 107, 230], 0.2, 128, 5e-4, 1e-2),
    ("cifar100", "resnet110"): (300, [53, 107, 230], 0.2, 128, 1e-4, 1e-2),
    ("cifar100", "wrn28_10"): (448, [77, 153, 307], 0.2, 64, 5e-4, 1e-3),
    ("imagenet", "resnet50"): (90, [30, 60], 0.1, 128, 1e-4, 1e-4),
}


@pytest.mark.parametrize(("dataset", "model"), PAPER)
def test_recipes_are_the_papers(config, dataset, model):
    epochs, milestones, gamma, batch_size, wd, nl = PAPER[dataset, model]
    for reg, lam in (("wd", wd), ("nl", nl)):
        cfg = config(f"dataset={dataset}", f"model={model}", f"reg={reg}")
        assert (cfg.train.epochs, cfg.train.milestones, cfg.train.gamma) == (epochs, milestones, gamma)
        assert (cfg.train.batch_size, cfg.train.lr, cfg.train.momentum) == (batch_size, 0.1, 0.9)
        assert cfg.reg.lam == lam
        assert cfg.train.nesterov == (dataset == "imagenet")
        assert cfg.train.micro_batch == (64 if dataset == "imagenet" else None)


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml")))
def test_experiments_have_as_many_runs_as_their_headers_say(experiment):
    header = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text()
    if "\ncompare:" in header:
        pytest.skip("its runs depend on results: tests/test_tuning.py")
    runs = expand([f"experiment={experiment}"])
    assert len({cfg.id for cfg in runs}) == len(runs) == int(re.search(r"(\d+) runs", header)[1])


def test_the_plain_command_fig2_and_fig4_share_a_run(config):
    plain = config("dataset=cifar100", "model=wrn28_10", "reg=nl")
    (fig2,) = [run for run in expand(["experiment=fig2"]) if (run.reg.name, run.reg.lam) == ("nl", 1e-3)]
    (fig4,) = [run for run in expand(["experiment=fig4"]) if (run.reg.name, run.train.batch_size) == ("nl", 64)]
    assert plain.id == fig2.id == fig4.id


def test_run_id_is_what_is_trained_not_where_or_how(config):
    base = config("dataset=digits", "model=resnet8")
    assert re.fullmatch("[0-9a-f]{8}", base.id)
    elsewhere = (
        "device=cpu threads=3 store=/x data_dir=/y wandb.mode=offline checkpoint_minutes=1 deterministic=true"
        " workers=0 restart=true train.executor=compile"
    )
    assert config("dataset=digits", "model=resnet8", *elsewhere.split()).id == base.id


def test_run_id_changes_with_what_is_trained(config):
    short = "train.epochs=2 train.milestones=[]"
    changes = ["", "seed=1", "reg=wd", "reg.lam=0.02", "reg.decoupled=true", "train.lr=0.2", "train.max_steps=5"]
    changes += ["dataset.flip=0.5", "dataset.val=300", "dataset.val=500", "model.depth=14"]
    changes += [short, f"{short} train.lr_values=[1,0.5]"]
    assert len({config("dataset=digits", "model=resnet8", *each.split()).id for each in changes}) == len(changes)


def test_one_number_has_one_identity(config):
    ids = {config("dataset=digits", "model=resnet8", f"reg.lam={lam}").id for lam in ("1", "1.0", "1e0")}
    assert len(ids) == 1


def test_configs_stored_by_older_versions_load_as_the_same_run(config):
    """Before the executor had a key, and while decoding had one."""
    cfg = config("dataset=imagenet", "model=resnet50", "train.executor=eager")
    stored = cfg.stored() | {"decode": "device"}
    del stored["train"]["executor"]
    assert read_stored(stored).id == run_id(stored) == cfg.id


@pytest.mark.parametrize("words", ["dataset=digits model=resnet8", "dataset=folder model=resnet20 recipe=mini"])
def test_a_home_folder_is_expanded(config, monkeypatch, tmp_path, words):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("cat", "dog"):
        (tmp_path / "images/train" / name).mkdir(parents=True)
    cfg = config(*words.split(), "data_dir='~/images'", "store='~/runs'")
    assert (cfg.data_dir, cfg.store) == (f"{tmp_path}/images", f"{tmp_path}/runs")
    if "folder" in words:
        assert (cfg.dataset.num_classes, cfg.dataset.label) == (2, "images")
    else:
        assert config(*words.split(), "data_dir=2024").data_dir == "2024"


def choices(group: str) -> str:
    return " ".join(sorted(path.stem for path in (CONFIGS / group).glob("*.yaml")))


METHODS = " ".join(tuning.all_methods())
REFUSED = {
    "reg=foo": f"reg: must be one of {choices('reg')}, got 'foo'",
    "reg=[nl,wd]": "reg: must be one name, got [nl,wd]; for several runs: -m reg=a,b",
    "hydra/launcher=[slurm]": "hydra/launcher: must be one name, got [slurm]",
    "hydra/launcher=foo": "hydra/launcher: must be one of local slurm, got 'foo'",
    "--config-dir /no/such": "--config-dir: must be a folder that exists, got /no/such",
    "-m seed=range(0,0)": "seed=range(0,0): has no value to sweep over",
    "rge=nl": "rge: no such key; did you mean reg?",
    "lam=3": "lam: no such key; did you mean reg.lam?",
    "lr=0.1": "lr: no such key; did you mean train.lr?",
    "train.layers=conv": "train.layers: no such key; did you mean reg.layers?",
    "reg.lamb=3": "reg.lamb: no such key; did you mean reg.lam?",
    "lam.so=1": "lam.so: no such key; there are: wd nl",
    "model.dropout=0.3": "model.dropout: no such key of the chosen model; others have it",
    "train=short": "train: must be set key by key (python train.py --cfg job shows them), got 'short'",
    "++train.batch_szie=4": "train.batch_szie: no such key; did you mean train.batch_size?",
    "+reg.foo=1": "reg.foo: no such key for reg=nl",
    "train.lr_values=[0.1]": "train.lr_values: must hold a value for each of train.epochs=164, got 1",
    "reg.lam=abc": "reg.lam: must be a valid number, got 'abc'",
    "reg.layers=3": "reg.layers: must be like 'conv+linear', got 3",
    "reg.lam_values=[1,2]": "reg.lam_values: must hold one value more than reg.lam_milestones (0), got 2",
    "train.batch_size=0": "train.batch_size: must be at least 1, got 0",
    "train.epochs=20": "train.milestones: must rise and lie between 1 and train.epochs-1=19, got [82, 123]",
    "train.micro_batch=48": "train.micro_batch: must divide train.batch_size=128, got 48",
    "train.executor=graph device=cpu dataset=digits": "train.executor: graph needs a CUDA device, got cpu; choose auto",
    "train.executor=fast": "train.executor: must be 'auto', 'eager', 'graph' or 'compile', got 'fast'",
    "dataset.mean=[1]": "dataset.mean: must hold dataset.channels=3 values, got [1.0]",
    "model.depth=9": "model.depth: must be 6n+2, got 9",
    "device=gpu": "device: must be auto, cpu, mps, cuda or cuda:N, got 'gpu'",
    "data_dir=null": "data_dir: must be given",
    "dataset=folder recipe=cifar10_resnet110 data_dir=/no.npz": "/no.npz: not a readable .npz file (No such file",
    "dataset=digits dataset.val=5": "dataset.val: must be at least 10, an image of each class, got 5",
    "dataset.val=some": "dataset.val: must be a number of images or file, got 'some'",
    "dataset.val=file dataset=digits": "dataset.val: must be a valid integer, got 'file'",
    "dataset.val=file": "dataset.val: file needs data_dir=FILE.npz with val_images for cifar10, got data",
    "decode=device": "decode: is gone since version 0.2.0; JPEGs are decoded on the host",
    "seed=1,2": "Ambiguous value for argument 'seed=1,2'",
    "=nl": "",
    "--cfg everything": "",
    "--experimental-rerun x.pickle": "--experimental-rerun: is rejected: it reads a pickle",
    "-m seed=1,2 hydra/sweeper=optuna": "hydra/sweeper: must be one of basic, got 'optuna'",
    "-m seed=1,2 hydra/launcher=basic": "hydra/launcher: must be local or slurm, got 'basic'",
    "-m model=resnet8,resnet20 recipe=digits_resnet8 dataset=digits model.dropout=0.3": "model.dropout: no such key",
    "seed=99999999999999999999": "seed: must be less than or equal to 9223372036854775807, got 99999999999999999999",
    "model=resnet20": f"recipe: must be one of {choices('recipe')}, got 'cifar10_resnet20'; the default is DATASET",
    "experiment=demo,table1": "experiment=demo,table1: one experiment per command",
    "dataset=folder recipe=cifar10_resnet110 data_dir=/nowhere": "no folder /nowhere/train that can be read",
    "device=cuda:7 dataset=digits": "device: must be there, got cuda:7",
    "-m seed=0,1 hydra.launcher.jobs=0": "hydra.launcher.jobs: must be at least 1, got 0",
    "-m seeds=0,1": "seeds: is gone since version 0.2.0; -m seed=0,1,2 hydra.launcher.jobs=N trains N at a time",
    "compare=nl dataset.val=0": "dataset.val: must be given, ",
    "compare=nl,wdd": f"compare: must be all or some of {METHODS}, got 'wdd'; did you mean wd",
    "compare=nl trials=0": "trials: must be a whole number of at least 1, got '0'",
    "compare=nl seeds=0,1": "seeds: must be a whole number of at least 1, got '0,1'",
    "compare=nl dataset.val=100 reg=wd": "reg=wd: is drawn by the comparison; compare=METHOD",
    "compare=nl dataset.val=100 train.lr=0.1": "train.lr=0.1: is drawn by the comparison; configs/search",
    "compare=nl dataset.val=100 train.batch_size=32,64": "compare: needs one value per other key, got 2",
    "compare=nl dataset.val=100 name=a/b": "name: must be a file's name without a folder, got 'a/b'",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_wrong_config_is_refused_in_one_line(monkeypatch, capsys, tmp_path, arguments):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        words = [*arguments.split(), f"store={tmp_path}", "wandb.mode=disabled"]
        assert exit_status(lambda: train.main(words)) == 2
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    line = capsys.readouterr().err
    assert line.startswith(f"normloss: {REFUSED[arguments]}")
    assert line.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("others", [[], ["queue=q.yaml"], ["-m", "compare=nl,wd", "seed=0,1"]])
def test_help_answers_without_torch_and_names_the_groups(others):
    shown = ran("-X", "importtime", "train.py", *others, "--help")
    assert "| torch\n" not in shown.stderr
    for group in ("dataset:", "model:", "reg:", "recipe:", "experiment:", "debug:"):
        assert group in shown.stdout
    assert shown.stdout.count("python train.py ") >= 11


@pytest.mark.parametrize(
    ("model", "rates"),
    [("resnet110", {0: 0.01, 2: 0.1, 81: 0.1, 82: 0.01, 122: 0.01, 123: 0.001, 163: 0.001}),
     ("wrn28_10", {0: 0.1, 52: 0.1, 53: 0.02, 107: 0.004, 229: 0.004, 230: 0.0008, 299: 0.0008})],
)  # fmt: skip
def test_learning_rates_are_the_papers(config, model, rates):
    """ResNet110 begins with 400 steps at 0.01."""
    train = config(f"model={model}").train
    assert [lr_at(train, epoch, epoch * 391) for epoch in rates] == pytest.approx([*rates.values()])
    assert [lr_at(train, 1, step) for step in (399, 400)] == [rates[0], 0.1]


def test_lam_falls_at_its_milestones(config):
    reg = config("dataset=digits", "model=resnet8", "reg.lam=0.1", "reg.lam_milestones=[3,5]", "reg.lam_gamma=0.1").reg
    assert [lam_at(reg, epoch) for epoch in (2, 3, 4, 5, 19)] == pytest.approx([0.1, 1e-2, 1e-2, 1e-3, 1e-3])
