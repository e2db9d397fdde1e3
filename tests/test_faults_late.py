"""Signals at late moments: while a run tests, loads, saves or ends, and while commands read and write.

NORMLOSS_KILLS=10 python -m pytest -m faults tests/test_faults_late.py sends as many to each command.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from data_support import save_photographs
from forked import Command
from runs_support import write_run
from test_faults import assert_same_end, status, wait_until

from normloss.data import imagenet, tensors
from normloss.runs import store
from normloss.runs.records import load_runs
from normloss.signals import SIGNALS

pytestmark = [pytest.mark.slow, pytest.mark.faults]
HERE = ["device=cpu", "threads=1", "train.milestones=[]", "wandb.mode=disabled", "train.epochs=2", "model=resnet8"]
DIGITS = [*HERE, "dataset=digits", "train.batch_size=64", "train.eval_batches=4", "train.max_steps=40"]
SAVE_OFTEN = "checkpoint_minutes=0.0001"
TIMES = int(os.environ.get("NORMLOSS_KILLS", 5))
HELD = 1.0  # seconds that a moment lasts


class Moment:
    """Something that happens once, whenever a process comes to it, and then takes a second."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def pass_(self) -> None:
        if not self.file.exists():
            self.file.touch()
            until = time.monotonic() + HELD
            while time.monotonic() < until:
                time.sleep(0.01)


@pytest.fixture
def moment(tmp_path):
    return Moment(tmp_path / "moment")


def in_evaluation(moment, monkeypatch):
    test = tensors.TensorData.test

    def slow(self):
        for batch in test(self):
            yield batch
            moment.pass_()

    monkeypatch.setattr(tensors.TensorData, "test", slow)


def in_saving(moment, monkeypatch):
    write = store.write_whole

    def slow(file, content, keep=None):
        if file.name == "last.pt" and file.exists():
            moment.pass_()
        write(file, content, keep)

    monkeypatch.setattr(store, "write_whole", slow)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """By the words of a run: how it ends."""
    ended = {}

    def run(words):
        key = " ".join(words)
        if key not in ended:
            folder = tmp_path_factory.mktemp("undisturbed")
            process = Command(folder / "log", *words, f"store={folder / 'runs'}")
            assert process.wait() == 0, process.text()
            (ended[key],) = load_runs(folder / "runs")
        return ended[key]

    return run


@pytest.mark.parametrize("at", [in_saving, in_evaluation], ids=lambda at: at.__name__)
def test_a_second_signal_leaves_at_once_and_the_store_whole(undisturbed, moment, monkeypatch, tmp_path, at):
    with monkeypatch.context() as patched:
        at(moment, patched)
        process = Command(tmp_path / "log", *DIGITS, SAVE_OFTEN, f"store={tmp_path / 'runs'}")
    wait_until(moment.file.exists)
    process.send(signal.SIGINT)
    wait_until(lambda: "SIGINT: saving" in process.text())
    began = time.monotonic()
    process.send(signal.SIGINT)
    assert process.wait() == 75, process.text()
    assert time.monotonic() - began < 0.5
    assert load_runs(tmp_path / "runs")[0].state == "incomplete"
    again = Command(tmp_path / "log", *DIGITS, f"store={tmp_path / 'runs'}")
    assert again.wait() == 0, again.text()
    (run,) = load_runs(tmp_path / "runs")
    assert_same_end(run, undisturbed(DIGITS))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    root = save_photographs(tmp_path_factory.mktemp("photographs"))
    return [
        *HERE, "dataset=imagenet", "dataset.num_classes=2", "dataset.label=mine", "dataset.size=24",
        "dataset.resize=28", f"data_dir={root}", "recipe=cifar10_resnet110", "train.batch_size=2", "train.epochs=4",
    ]  # fmt: skip


@pytest.mark.parametrize("to", ["process", "group"])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_while_processes_read_images(undisturbed, photographs, moment, monkeypatch, tmp_path, number, to):
    read = imagenet.read_image

    def slow(*arguments):
        if len(list((tmp_path / "runs").glob("*/last.pt"))):
            moment.pass_()
        return read(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(imagenet, "read_image", slow)
        process = Command(tmp_path / "log", *photographs, SAVE_OFTEN, "workers=2", f"store={tmp_path / 'runs'}")
    wait_until(moment.file.exists)
    (os.kill if to == "process" else os.killpg)(process.pid, number)
    assert process.wait() == 75, process.text()
    left = status(tmp_path / "runs")
    assert (
        process.text()
        .splitlines()[-1]
        .endswith(f"stopped by {number.name} at step {left['step']}; start it again to go on")
    )
    again = Command(tmp_path / "log", *photographs, "workers=1", f"store={tmp_path / 'runs'}")
    assert again.wait() == 0, again.text()
    (run,) = load_runs(tmp_path / "runs")
    assert_same_end(run, undisturbed(photographs))


# commands ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory, config):
    """A store of 60 finished runs."""
    folder = tmp_path_factory.mktemp("store") / "runs"
    for seed in range(60):
        words = ["dataset=digits", "model=resnet8", "train.epochs=4", "train.milestones=[]", f"seed={seed}"]
        write_run(folder, config(*words), 5.0 + seed / 60)
    return folder


def everything_in(folder: Path) -> dict[str, bytes | None]:
    """Return the bytes of every file below a folder by its path; None for a folder."""
    files = folder.rglob("*")
    return {str(file.relative_to(folder)): file.read_bytes() if file.is_file() else None for file in files}


def files_of(folder):
    """What a command wrote, but for its locks, and for files and folders that it had begun."""
    hidden = lambda name: any(part.startswith(".") for part in Path(name).parts)  # noqa: E731
    return {name: content for name, content in everything_in(folder).items() if not hidden(name)}


@pytest.mark.parametrize("name", ["export", "merge"])
def test_a_signal_at_any_moment_of_a_command(runs, tmp_path, name):
    def start(folder):
        words = {"export": [str(runs), f"--results={folder}"], "merge": [str(runs), f"--store={folder}"]}[name]
        return Command(tmp_path / "log", *words, script=f"scripts/{name}.py")

    began = time.monotonic()
    process = start(tmp_path / "undisturbed")
    assert process.wait() == 0, process.text()
    seconds, expected = time.monotonic() - began, files_of(tmp_path / "undisturbed")
    draw, hits = random.Random(name), 0
    for number in SIGNALS:
        of_this = 0
        while of_this < TIMES:
            folder = tmp_path / f"{number.name}{hits}"
            process = start(folder)
            time.sleep(draw.uniform(0, seconds))
            process.send(number)
            ended = process.wait()
            assert ended in (0, 75, -number), process.text()
            if ended == 75:
                (line,) = (line for line in process.text().splitlines() if "stopped" in line)
                assert line == f"normloss: stopped by {number.name}; start it again to go on"
            hits, of_this = hits + 1, of_this + 1
            written = files_of(folder) if folder.exists() else {}
            assert written.items() <= expected.items(), sorted(written.keys() - expected.keys())
            again = start(folder)
            assert again.wait() == 0, again.text()
            assert files_of(folder) == expected
    print(f"signals: {name} {hits}")
