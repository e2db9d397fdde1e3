"""train.py in processes forked from one that has torch: a start takes a moment, so that many can be killed."""

import faulthandler
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

from conftest import ROOT

import train
from normloss.cli import start
from normloss.errors import exit_status
from normloss.sweeps import processes

processes.preload()  # here, so that children have it


class Command:
    """python train.py WORDS, or a script, in a process of its own, forked from this one; output goes to `log`.

    flags: of opening it; with os.O_RDWR a terminal becomes that of the process, whose end it is told by SIGHUP.
    not_its: descriptors that this process alone is to have.
    """

    def __init__(
        self,
        log: Path,
        *words: str,
        script: str = "train.py",
        flags: int = os.O_WRONLY,
        not_its: Iterable[int] = (),
        **environment: str,
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
        faulthandler.register(signal.SIGQUIT, sys.stderr)
        for key in [*os.environ]:
            if key.startswith(("WANDB_", "NORMLOSS_")):
                del os.environ[key]
        os.environ |= environment
        sys.argv = [str(ROOT / self.script), *words]
        status = 0
        try:
            if self.script == "train.py":
                start.prepare()
                status = exit_status(
                    lambda: train.main([*words])
                )  # not its module run anew: a test may have changed it
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

    def wait(self, seconds: float = 240) -> int:
        until = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > until:
                for pid in [self.pid, *children(self.pid)]:
                    os.kill(pid, signal.SIGQUIT)  # where it stands goes into its log
                time.sleep(2)
                self.kill()
                raise AssertionError(f"still there after {seconds} s: {self.text()}")
            time.sleep(0.005)
        text = self.text()
        assert "Traceback" not in text, text
        return self.status

    def send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            while self.poll() is None:
                time.sleep(0.005)

    def text(self) -> str:
        return self.log.read_text() if self.log.is_file() else ""


def children(pid: int) -> list[int]:
    """Of a process that is there."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
