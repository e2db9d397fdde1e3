"""The runs that a command line stands for, against Hydra composing each of them alone."""

import pytest

from normloss.errors import UserError
from normloss.runs.records import load_runs
from normloss.sweeps.composing import expand, plan
from tests.forked import HERE, Command, wait_until

DIGITS = ["dataset=digits", "model=resnet8", "train.milestones=[]", "train.epochs=2"]


@pytest.mark.parametrize(
    ("words", "alone"),
    [
        (["-m", "reg=wd,nl", "seed=range(0,2)"], [["reg=wd", "seed=0"], ["reg=wd", "seed=1"],
                                                  ["reg=nl", "seed=0"], ["reg=nl", "seed=1"]]),
        (["-m", "reg.lam=1e-3,5e-4,1", "train.milestones=[1],[]"],
         [[f"reg.lam={lam}", f"train.milestones={m}"] for m in ("[1]", "[]") for lam in ("1e-3", "5e-4", "1")]),
        (["-m", "++train.nesterov=true,false"], [["train.nesterov=true"], ["train.nesterov=false"]]),
        (["-m", "seed=1", "seed=3,4"], [["seed=3"], ["seed=4"]]),
        (["-m", "reg.layers='conv','conv+linear'"], [["reg.layers=conv"], ["reg.layers=conv+linear"]]),
        (["-m", "seed=choice(5)"], [["seed=5"]]),
        (["-m", "train.batch_size=32,64", "train.micro_batch=16"],
         [[f"train.batch_size={b}", "train.micro_batch=16"] for b in (32, 64)]),
        (["experiment=demo", "reg=nl", "seed=1,2", *DIGITS],
         [["experiment=demo", "reg=nl", f"seed={s}"] for s in (1, 2)]),
        (["experiment=demo", "hydra.mode=RUN", "seed=7", *DIGITS], [["experiment=demo", "seed=7"]]),
        (["seed=7"], [["seed=7"]]),
    ],
)  # fmt: skip
def test_each_run_is_the_one_that_hydra_composes_of_its_words_alone(config, words, alone):
    given = words if "experiment=demo" in words else [*DIGITS, *words]
    assert [cfg.stored() for cfg in expand(given)] == [config(*DIGITS, *one).stored() for one in alone]


def test_a_runs_own_words_train_it_alone():
    for run in plan(["-m", "reg=wd,nl", "reg.lam=0.1,0.2", *DIGITS]):
        assert expand(run.words) == [run.cfg]


def test_a_key_next_to_a_swept_group_is_that_of_each_of_its_choices():
    words = ["-m", "recipe=cifar10_wrn28_10", "model.dropout=0.3"]
    assert [cfg.model.dropout for cfg in expand([*words, "model=wrn28_10,wrn16_4"])] == [0.3, 0.3]
    with pytest.raises(UserError, match="^model.dropout: no such key"):
        expand([*words, "model=wrn28_10,resnet110"])


def test_a_data_set_alone_has_its_model_in_a_queue_too(tmp_path):
    (tmp_path / "q.yaml").write_text("- dataset=digits reg=nl\n- dataset=digits seed=1,2\n")
    runs = expand([f"queue={tmp_path / 'q.yaml'}", "train.epochs=1", "train.milestones=[]"])
    assert [(cfg.model.name, cfg.reg.name, cfg.seed) for cfg in runs] == [("resnet8", "nl", seed) for seed in (0, 1, 2)]


@pytest.mark.parametrize(
    "text", ["- dataset=digits\n-\n", '- ""\n', "- 3\n", "- {reg: nl}\n", "reg: nl\n", "- seed=1 --help\n"]
)
def test_a_queue_of_anything_but_commands_that_train_is_refused(tmp_path, text):
    (tmp_path / "q.yaml").write_text(text)
    with pytest.raises(UserError, match="^queue: must be a list of texts such as"):
        expand([f"queue={tmp_path / 'q.yaml'}"])


OWN = """# @package _global_
defaults: [{override /dataset: digits}, {override /model: resnet8}]
hydra: {mode: MULTIRUN, sweeper: {params: {seed: '5,6'}}}
train: {epochs: 2, milestones: []}
"""


@pytest.fixture
def own_configs(tmp_path):
    """A folder of a user's with an experiment of theirs."""
    file = tmp_path / "mine" / "experiment" / "own.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(OWN)
    return tmp_path / "mine"


def test_configs_of_ones_own_are_composed(own_configs):
    runs = expand(["experiment=own", "--config-dir", str(own_configs)])
    assert [(cfg.dataset.name, cfg.seed, cfg.train.epochs) for cfg in runs] == [("digits", 5, 2), ("digits", 6, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["sweep", "queue"])
def test_what_was_planned_is_trained_whatever_happens_to_the_configs(own_configs, tmp_path, how):
    """The experiment's file is emptied as soon as the sweep has begun."""
    (tmp_path / "q.yaml").write_text("- experiment=own\n")
    first = "experiment=own" if how == "sweep" else f"queue={tmp_path / 'q.yaml'}"
    words = ["--config-dir", str(own_configs), first, "debug=smoke", f"store={tmp_path / 'runs'}", *HERE]
    planned = expand(words)
    sweep = Command(tmp_path / "log", *words)
    wait_until(lambda: sweep.text() == "sweep of 2 runs, 0 done before\n", sweep)
    (own_configs / "experiment" / "own.yaml").write_text("# @package _global_\nseed: 9\n")
    assert sweep.wait() == 0
    assert "2 of 2 runs done" in sweep.text()
    runs = load_runs(tmp_path / "runs")
    assert {run.id: run.config["seed"] for run in runs} == {cfg.id: cfg.seed for cfg in planned}
    for run in runs:
        assert run.meta["command"].endswith(" ".join(words))  # the sweep's words, and the run's own
        assert f"seed={run.config['seed']}" in run.meta["words"].split()
        assert run.meta["at_once"] == 1
