"""Signals to a command: its loops note them, save and leave; anywhere else the process leaves at once.

Either way the exit status is 75 and the same command resumes: the store survives a kill at any moment. SIGUSR1 and
SIGUSR2 are what SLURM and submitit send before the end of a job's time, SIGHUP what comes when a terminal is closed.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from normloss import output
from normloss.errors import Interrupted

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]
if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it, which is to stay
    SIGNALS.insert(0, signal.SIGHUP)
IN_JOB = "SLURM_JOB_ID" in os.environ  # SLURM sends a signal several times; its last one is SIGKILL
SAVE_SECONDS = 10.0  # before the end of a budget: a checkpoint is written in these


class StopRequest:
    """Asks the loops of a process to save and leave: at a signal, at a deadline, or once its parent is gone.

    deadline: seconds since the epoch. parent: the process whose end is to be noticed, such as a sweep's.
    """

    def __init__(self, deadline: float | None = None, parent: int | None = None) -> None:
        self.name: str | None = None
        self.received: list[int] = []  # signals that a loop noted
        self._deadline, self._parent = deadline, parent
        self._noting = self._every = False
        self._status = Interrupted.status

    def __bool__(self) -> bool:
        if self._parent is not None and os.getppid() != self._parent:
            self.name = self.name or "the end of its sweep"
        if self._deadline is not None and time.time() > self._deadline:
            self.name = self.name or "the end of its budget"
        return self.name is not None

    def listen(self) -> "StopRequest":
        """Handle the signals of this process from now on; those that were blocked arrive now."""
        for number in SIGNALS:
            signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return self

    @contextmanager
    def noted(self, every: bool = False) -> Iterator[None]:
        """Only note signals within this block, a loop that asks this object; a second one ends all, unless `every`."""
        self._noting, self._every = True, every
        try:
            yield
        finally:
            self._noting = False

    def finished(self) -> None:
        """From now on leave with 0: what was to be done is written."""
        self._status = 0

    def _handle(self, number: int, frame: object) -> None:
        first, self.name = self.name is None, self.name or signal.Signals(number).name
        if IN_JOB and not first and not self._every:
            return
        if not self._noting or not (first or self._every):
            leave_at_once(number, frame, self._status)
        self.received.append(number)
        output.leave_closed_terminal()
        if first and not self._every:
            _write(sys.stdout.fileno(), f"\n{self.name}: saving, then leaving (again to leave at once)\n")


def leave_at_once(number: int, frame: object, status: int = Interrupted.status) -> None:
    """End this process and the workers that it started, with one line; nothing else of it runs.

    An exception would be caught by any library on the way, or raised within a lock that is then never released.
    """
    output.leave_closed_terminal()
    if status:
        _write(2, f"normloss: stopped by {signal.Signals(number).name}; rerun the command to resume\n")
    for worker in multiprocessing.active_children():
        worker.kill()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, RuntimeError, ValueError):  # nobody reads it, in the middle of a write, or closed
            stream.flush()
    os._exit(status)


def _write(descriptor: int, line: str) -> None:
    with suppress(OSError):  # nobody reads it
        os.write(descriptor, line.encode())  # print could be what the signal interrupted
