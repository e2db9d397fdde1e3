"""train.py in real processes: forked from one that has torch, so that many can be killed; and what they leave."""

import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from conftest import ROOT, surroundings

import train
from normloss.cli.start import prepare
from normloss.errors import exit_status
from normloss.runs import files, records
from normloss.signals import SIGNALS
from normloss.sweeps import processes

processes.preload()  # here, so that children have it
WAIT = 240  # seconds, for anything that should come much sooner
HERE = ["device=cpu", "threads=1", "train.milestones=[]", "wandb.mode=disabled"]
DIGITS = [*HERE, "dataset=digits", "model=resnet8", "train.batch_size=64", "train.eval_batches=2"]
# dropout, so that a run that goes on needs torch's random numbers where it left them
DROPOUT = [*HERE, "dataset=digits", "model=wrn16_4", "model.width=1", "model.dropout=0.3", "recipe=digits_resnet8"]
SAVE_OFTEN = "checkpoint_minutes=0.0001"


class Command:
    """python train.py WORDS, or a script, in a process of its own, forked from this one; output goes to `log`.

    flags: of opening it; with os.O_RDWR a terminal becomes that of the process, whose end it is told by SIGHUP.
    not_its: descriptors that this process alone is to have.
    """

    def __init__(
        self, log: Path, *words: str, script="train.py", flags=os.O_WRONLY, not_its=(), **environment: str
    ) -> None:
        self.script, self.log, self.flags, self.not_its = script, log, flags, not_its
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._run(words, environment)
            except BaseException:  # noqa: BLE001  no exception of a child may reach the tests of its parent
                traceback.print_exc()
            os._exit(1)

    def _run(self, words, environment) -> None:
        os.setsid()
        for descriptor in self.not_its:
            os.close(descriptor)
        out = os.open(self.log, self.flags | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = os.fdopen(1, "w"), os.fdopen(2, "w")
        own = surroundings(**environment)
        os.environ.clear()
        os.environ |= own
        sys.argv = [str(ROOT / self.script), *words]
        status = 0
        try:
            if self.script == "train.py":
                prepare()
                status = exit_status(lambda: train.main([*words]))  # no new module: a test may have changed it
            else:
                runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def poll(self) -> int | None:
        """Its exit status, negative where a signal ended it; None while it runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status

    def wait(self) -> int:
        try:
            wait_until(lambda: self.poll() is not None)
        finally:
            self.kill()
        assert "Traceback" not in self.text(), self.text()
        return self.status

    def send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def text(self) -> str:
        return self.log.read_text() if self.log.is_file() else ""


def undisturbed(words: Iterable[str], folder: Path) -> records.RunRecord:
    """Return how the run of these words ends."""
    process = Command(folder / "undisturbed.log", *words, f"store={folder / 'undisturbed'}")
    assert process.wait() == 0, process.text()
    return the_run(folder / "undisturbed")


def start(*words: str, **environment: str) -> subprocess.Popen:
    """Start python train.py WORDS, with torch still to be imported."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, ROOT / "train.py", *words], env=surroundings(**environment), **pipes)


def wait_until(condition, process=None) -> None:
    """Poll until `condition`; `process` is to live that long."""
    until = time.monotonic() + WAIT
    while time.monotonic() < until:
        try:
            if condition():
                return
        except (TypeError, FileNotFoundError):  # no status yet, or a process that is gone
            pass
        if process is not None and process.poll() is not None:
            said = process.text() if isinstance(process, Command) else process.communicate()
            raise AssertionError(f"ended too early, status {process.poll()}: {said}")
        time.sleep(0.005)
    raise AssertionError("waited in vain")


def stat(pid: int) -> list[str]:
    """Return what /proc says of a process from its state on; ["Z"] where it is gone."""
    file = Path(f"/proc/{pid}/stat")
    return file.read_text().rpartition(")")[2].split() if file.exists() else ["Z"]


def alive(pid: int) -> bool:
    """Return whether a process is there, other than as a zombie that waits for its parent."""
    return stat(pid)[0] != "Z"


def listens(pid: int) -> bool:
    """Return whether a process has handlers of its own for all signals, as a command has from its first moments."""
    with open(f"/proc/{pid}/status") as facts:
        caught = int(next(line.split()[1] for line in facts if line.startswith("SigCgt:")), 16)
    return all(caught >> (number - 1) & 1 for number in SIGNALS)


def wait_until_it_listens(process) -> None:
    """Before, a signal meets Python itself, or in a forked process the handlers of the tests."""
    wait_until(lambda: listens(process.pid) or process.poll() is not None)


def members(sweep: Command) -> list[int]:
    """Return the processes of a sweep's runs: children that lead a session of their own."""
    children = Path(f"/proc/{sweep.pid}/task/{sweep.pid}/children").read_text().split()
    return [int(pid) for pid in children if stat(pid)[3:4] == [pid]]


def the_run(store: Path) -> records.RunRecord:
    """Return the one run of a store."""
    (run,) = records.load_runs(store)
    return run


def by_seed(store: Path) -> list[records.RunRecord]:
    return sorted(records.load_runs(store), key=lambda run: run.config["seed"])


def status(store: Path) -> dict | None:
    """Return status.json of the one run of a store: a file read and nothing else, at any time; None where none is."""
    paths = [*store.glob("*/status.json")]
    return files.read_json(paths[0]) if paths else None


def timeless(record: dict) -> dict:
    return {key: value for key, value in record.items() if key not in ("seconds", "epochs_bytes")}


def assert_same_end(run: records.RunRecord, other: records.RunRecord) -> None:
    """Everything but durations: records, cross entropies of every step, the whole checkpoint bit by bit."""
    assert run.state == other.state == "done"
    assert [timeless(epoch) for epoch in run.epochs] == [timeless(epoch) for epoch in other.epochs]
    assert timeless(run.final) == timeless(other.final)
    for ours, theirs in zip(run.steps(), other.steps(), strict=True):
        assert np.array_equal(ours, theirs)
    assert equal(*(torch.load(each.path / "last.pt") for each in (run, other)))


def equal(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        one, other = timeless(one), timeless(other)
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other
