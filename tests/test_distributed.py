"""ImageNet by two processes is the run of one: torchrun over gloo, on small pictures and on real photographs."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from data_support import save_photographs
from forked import status, the_run, wait_until

from normloss.errors import UserError
from normloss.runs import store
from normloss.training import distributed
from tests.conftest import ROOT

RUN = [
    "dataset=imagenet", "model=resnet18", "recipe=imagenet_resnet50", "dataset.num_classes=2", "dataset.size=24",
    "dataset.resize=28", "train.batch_size=4", "train.micro_batch=2", "train.epochs=4", "train.milestones=[2]",
    "train.lr=0.01", "device=cpu", "threads=1", "workers=0", "wandb.mode=disabled",
]  # fmt: skip
# batch norm over two images of one pixel turns rounding into signs: more pixels, and few steps
WIDER = ["dataset.size=64", "dataset.resize=72", "train.max_steps=3"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Ten pictures of two classes: steps of 4, 4 and 2 images, of which the last leaves the second process none."""
    return save_photographs(tmp_path_factory.mktemp("imagenet"))


def start(*words: str, processes: int = 1) -> subprocess.Popen:
    python = [*TORCHRUN, str(processes)] if processes > 1 else [sys.executable]
    command = [*python, str(ROOT / "train.py"), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def train(*words: str, processes: int = 1, ok: bool = True) -> str:
    process = start(*words, processes=processes)
    output, _ = process.communicate(timeout=280)
    assert (process.returncode == 0) == ok, output
    return output


def assert_same_run(run, other, rtol: float = 1e-4) -> None:
    """Sums in another order: float32's rounding, grown over some steps."""
    assert run.id == other.id
    assert run.state == other.state == "done"
    ours, theirs = (torch.load(each.path / "last.pt", weights_only=True) for each in (run, other))
    torch.testing.assert_close(ours["model"], theirs["model"], rtol=rtol, atol=rtol / 10)
    torch.testing.assert_close(ours["optimizer"]["state"], theirs["optimizer"]["state"], rtol=rtol, atol=rtol)
    torch.testing.assert_close(*(torch.tensor(each.steps()[1]) for each in (run, other)), rtol=rtol, atol=rtol)
    for mine, its in zip(run.epochs, other.epochs, strict=True):
        assert mine["test_error"] == its["test_error"]
        assert mine["train_error"] == its["train_error"]
        assert mine["test_ce"] == pytest.approx(its["test_ce"], rel=rtol)


@pytest.fixture(scope="module")
def alone(tree, tmp_path_factory):
    """alone("reg=nl") -> the run of one process, made once."""
    made = {}

    def run(*words: str):
        if words not in made:
            made[words] = tmp_path_factory.mktemp("alone")
            train(*RUN, *words, f"data_dir={tree}", f"store={made[words]}")
        return the_run(made[words])

    return run


@pytest.mark.parametrize("words", [("reg=nl",), pytest.param(("reg=sn",), marks=pytest.mark.slow)], ids=["nl", "sn"])
def test_two_processes_train_the_run_of_one(tree, tmp_path, alone, words):
    output = train(*RUN, *words, f"data_dir={tree}", f"store={tmp_path}", processes=2)
    run = the_run(tmp_path)
    assert_same_run(run, alone(*words))
    assert run.meta["executor"] == "ddp"
    assert output.count(" is done: test error") == 1  # the first alone talks
    assert "is done: " in train(*RUN, *words, f"data_dir={tree}", f"store={tmp_path}", processes=2)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["wd", "wn", "so", "oni_imagenet", "pbwn", "srip", "olm"])
def test_every_kind_of_method_can(tree, tmp_path, alone, preset):
    train(*RUN, *WIDER, f"reg={preset}", f"data_dir={tree}", f"store={tmp_path}", processes=2)
    assert_same_run(the_run(tmp_path), alone(*WIDER, f"reg={preset}"), rtol=1e-3)


def stopped(*words: str, store: Path, processes: int) -> None:
    """Start a run and tell it to leave after some steps."""
    process = start(*words, f"store={store}", processes=processes)
    wait_until(lambda: status(store)["saved"], process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert re.search(r"stopped by SIGTERM at step \d+; start it again to go on", output), output
    assert process.returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_either_form_goes_on_from_the_others_checkpoint(tree, tmp_path, first, then):
    words = [*RUN, "checkpoint_minutes=0.0001", f"data_dir={tree}", "train.max_steps=30", "train.epochs=400"]
    stopped(*words, store=tmp_path / "two", processes=first)
    step = status(tmp_path / "two")["step"]
    assert 0 < step < 30
    assert f"step {step}" in train(*words, f"store={tmp_path / 'two'}", processes=then)
    train(*words, f"store={tmp_path / 'straight'}")
    assert_same_run(the_run(tmp_path / "two"), the_run(tmp_path / "straight"), rtol=1e-2)


# refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "count", "line"),
    [
        (["dataset=digits", "model=resnet8"], 2, "torchrun: is for dataset=imagenet, got dataset=digits"),
        (["dataset=imagenet", "reg=jac"], 2, "torchrun: cannot train reg=jac"),
        (["dataset=imagenet", "train.executor=graph"], 2, "torchrun: trains eagerly, got train.executor=graph"),
        (["dataset=imagenet"], 4, "torchrun: the number of processes must divide a step's micro-batches, got 4"),
        (["dataset=imagenet", "train.micro_batch=null"], 2, "got 2 processes and 1 of 128 images"),
    ],
)
def test_what_several_processes_cannot_train_is_refused(config, words, count, line):
    with pytest.raises(UserError, match=re.escape(line)):
        distributed.check(config(*words, *(["model=resnet50"] if "dataset=imagenet" in words else [])), count)


def test_each_process_needs_a_gpu_where_there_are_some(config, monkeypatch):
    cfg = config("dataset=imagenet", "model=resnet50")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(UserError, match="torchrun: needs a GPU for each process, got 2 processes and 1 GPUs"):
        distributed.check(cfg, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    distributed.check(cfg, 2)


def test_processes_on_two_machines_are_refused(config, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(UserError, match="torchrun: must start all processes on one machine, got 2 on several"):
        distributed.check(config("dataset=imagenet", "model=resnet50"), 2)


def test_many_runs_are_refused_in_a_line():
    environment = os.environ | {"WORLD_SIZE": "2", "RANK": "0", "TORCHELASTIC_RUN_ID": "none"}
    command = [sys.executable, str(ROOT / "train.py"), "experiment=demo"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    line = "normloss: torchrun: trains one run by several processes, got a command for many runs\n"
    assert (ran.returncode, ran.stderr) == (2, line)


def test_what_stops_the_first_process_stops_all_in_its_line(tree, tmp_path, config):
    """A run that another process has: gloo's errors would tell nobody."""
    cfg = config(*RUN, f"data_dir={tree}", f"store={tmp_path}")
    with store.open_run(cfg).session():
        output = train(*RUN, f"data_dir={tree}", f"store={tmp_path}", processes=2, ok=False)
    assert output.count("is being trained by another process") == 1
    assert "gloo" not in output.lower()
