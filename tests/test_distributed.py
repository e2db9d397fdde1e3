"""ImageNet by two processes is the run of one: processes as torchrun starts them, over gloo, on small pictures."""

import re
import signal
import socket

import pytest
import torch
from data_support import save_photographs
from forked import SAVE_OFTEN, Command, status, the_run, wait_until

from normloss.runs import store
from normloss.training import distributed
from tests.conftest import ran, refused

RUN = [
    "dataset=imagenet", "model=resnet18", "recipe=imagenet_resnet50", "dataset.num_classes=2", "dataset.size=24",
    "dataset.resize=28", "train.batch_size=4", "train.micro_batch=2", "train.epochs=2", "train.milestones=[1]",
    "train.lr=0.01", "device=cpu", "threads=1", "workers=0", "wandb.mode=disabled",
]  # fmt: skip
# batch norm over two images of one pixel turns rounding into signs: more pixels, and few steps
WIDER = ["dataset.size=64", "dataset.resize=72", "train.max_steps=3"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Ten pictures of two classes: steps of 4, 4 and 2 images, of which the last leaves the second process none."""
    return save_photographs(tmp_path_factory.mktemp("imagenet"))


def launch(folder, *words: str, processes: int = 1) -> list[Command]:
    """Start the processes of a run, in the environment that torchrun gives each, forked."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none"}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    words = [*RUN, *words, f"store={folder / 'runs'}"]
    return [Command(folder / f"{i}.txt", *words, **own) for i, own in enumerate(ranks if processes > 1 else [{}])]


def train(folder, *words: str, processes: int = 1, expected: int = 0) -> str:
    """Train to the end; return what the processes print."""
    running = launch(folder, *words, processes=processes)
    statuses = [process.wait() for process in running]
    said = "".join(process.text() for process in running)
    assert statuses == [expected] * processes, said
    return said


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


def assert_two_are_one(folder, *words: str, rtol: float = 1e-4) -> str:
    for name in ("two", "one"):
        (folder / name).mkdir()
    said = train(folder / "two", *words, processes=2)
    train(folder / "one", *words)
    assert_same_run(the_run(folder / "two" / "runs"), the_run(folder / "one" / "runs"), rtol)
    return said


def test_two_processes_train_the_run_of_one(tree, tmp_path):
    said = assert_two_are_one(tmp_path, "reg=nl", f"data_dir={tree}")
    assert the_run(tmp_path / "two" / "runs").meta["executor"] == "ddp"
    assert said.count(" is done: test error") == 1  # the first alone talks
    assert "is done: " in train(tmp_path / "two", "reg=nl", f"data_dir={tree}", processes=2)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["sn", "wd", "wn", "so", "oni_imagenet", "pbwn", "srip", "olm"])
def test_every_kind_of_method_can(tree, tmp_path, preset):
    assert_two_are_one(tmp_path, *WIDER, f"reg={preset}", f"data_dir={tree}", rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_either_form_goes_on_from_the_others_checkpoint(tree, tmp_path, first, then):
    """One of the processes gets a signal: all leave."""
    words = [f"data_dir={tree}", "train.max_steps=12", "train.epochs=400"]
    running = launch(tmp_path, *words, SAVE_OFTEN, processes=first)
    wait_until(lambda: status(tmp_path / "runs")["saved"], running[0])
    running[-1].send(signal.SIGTERM)
    assert [process.wait() for process in running] == [75] * first
    assert re.search(r"stopped by (SIGTERM|another process) at step \d+; rerun the command", running[0].text())
    step = status(tmp_path / "runs")["step"]
    assert 0 < step < 12
    assert f"step {step}" in train(tmp_path, *words, processes=then)
    (tmp_path / "straight").mkdir()
    train(tmp_path / "straight", *words)
    assert_same_run(the_run(tmp_path / "runs"), the_run(tmp_path / "straight" / "runs"), rtol=1e-2)


@pytest.mark.slow
def test_torchrun_itself_trains_a_run(tree, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ran(*torchrun, "train.py", *RUN, "train.max_steps=3", f"data_dir={tree}", f"store={tmp_path}")
    assert (the_run(tmp_path).state, the_run(tmp_path).meta["executor"]) == ("done", "ddp")


IMAGENET = ["dataset=imagenet", "model=resnet50"]


@pytest.mark.parametrize(
    ("words", "count", "environment", "line"),
    [
        (["dataset=digits", "model=resnet8"], 2, {}, "is for dataset=imagenet, got dataset=digits"),
        ([*IMAGENET, "reg=jac"], 2, {}, "cannot train reg=jac"),
        ([*IMAGENET, "train.executor=graph"], 2, {}, "trains eagerly, got train.executor=graph"),
        (IMAGENET, 4, {}, "the number of processes must divide a step's micro-batches, got 4"),
        ([*IMAGENET, "train.micro_batch=null"], 2, {}, "got 2 processes and 1 of 128 images"),
        (IMAGENET, 2, {"CUDA_VISIBLE_DEVICES": "3"}, "needs a GPU for each process, got 2 processes and 1 GPUs"),
        (IMAGENET, 2, {"CUDA_VISIBLE_DEVICES": "3,5"}, None),
    ],
)
def test_what_several_processes_cannot_train_is_refused(config, monkeypatch, words, count, environment, line):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if line is None:
        distributed.check(config(*words), count)
    else:
        said = refused(distributed.check, config(*words), count)
        assert said.startswith("torchrun: ") and line in said


def test_many_runs_are_refused_in_a_line():
    ended = ran("train.py", "experiment=demo", status=2, WORLD_SIZE="2", RANK="0", TORCHELASTIC_RUN_ID="none")
    line = "normloss: torchrun: trains one run by several processes, got a command for many runs\n"
    assert ended.stderr == line


def test_what_stops_the_first_process_stops_all_in_its_line(tree, tmp_path, config):
    """A run that another process has: gloo's errors would tell nobody."""
    cfg = config(*RUN, f"data_dir={tree}", f"store={tmp_path / 'runs'}")
    with store.open_run(cfg).session():
        said = train(tmp_path, f"data_dir={tree}", processes=2, expected=4)
    assert said.count("is being trained by another process") == 1
    assert "gloo" not in said.lower()
