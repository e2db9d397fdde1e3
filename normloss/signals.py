"""Signals and the end of a budget ask a run to save and leave; a second signal leaves at once.

SIGUSR1 and SIGUSR2 are what SLURM and submitit send before the end of a job's time, SIGHUP what comes where a terminal
is closed.
"""

import errno
import json
import os
import signal
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from normloss.errors import Interrupted, Stop

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]
if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it, which is to stay
    SIGNALS.insert(0, signal.SIGHUP)


IN_JOB = "SLURM_JOB_ID" in os.environ  # SLURM says a thing several times; its last word is SIGKILL


class Signalled(KeyboardInterrupt):
    """A signal to a command with nothing to save; no Exception, which a library on the way could take for its own."""


class StopRequest:
    """Whether something asked this process to stop. Outside `deferred` a signal stops it where it stands.

    deadline: seconds since the epoch; a member of a sweep has its sweep's.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.name: str | None = None
        self._deferring = 0  # step loops under way
        self._raised = False
        # a member of a sweep stops when the sweep's process is gone
        sweep = json.loads(os.environ.get("NORMLOSS_SWEEP", "{}"))
        self._parent = sweep.get("pid")
        self._deadline = sweep.get("deadline", deadline)

    def __bool__(self) -> bool:
        if self._parent is not None and os.getppid() != self._parent:
            self.name = self.name or "the end of its sweep"
        if self._deadline is not None and time.time() > self._deadline:
            self.name = self.name or "the end of its budget"
        return self.name is not None

    @contextmanager
    def installed(self) -> Iterator["StopRequest"]:
        """Handle the signals within this block (in the main thread; elsewhere they are not ours)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked by the sweep until now
            yield self
        except Exception as error:
            if not self._raised or isinstance(error, Stop):
                raise
            raise self._interrupted() from error  # what an import, or Python itself, made of the first one
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within this block a signal is only noted: the step loop asks, saves and leaves."""
        self._deferring += 1
        try:
            yield
        finally:
            self._deferring -= 1

    def _handle(self, number: int, frame: object) -> None:
        leave_closed_terminal()
        again, self.name = self.name, signal.Signals(number).name
        if (again and not IN_JOB) or not self._deferring:
            self._raised = True
            raise self._interrupted()
        print(f"\n{self.name}: saving, then leaving (again to leave at once)", flush=True)

    def _interrupted(self) -> Interrupted:
        return Interrupted(f"stopped by {self.name}; start it again to go on")


@contextmanager
def raised() -> Iterator[None]:
    """Within this block a signal is raised as Signalled; a second one leaves as it would have done outside."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    name: str | None = None

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, frame: object) -> None:
        nonlocal name
        restore()
        leave_closed_terminal()
        name = signal.Signals(number).name
        raise Signalled(name)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    except Exception as error:
        if name is None or isinstance(error, Stop):
            raise
        raise Signalled(name) from error  # what an import, or Python itself, made of the first one
    finally:
        restore()


def leave_closed_terminal() -> None:
    """Send standard output and error nowhere where their terminal is gone: to write to it would be an error."""
    for stream in (1, 2):
        try:
            termios.tcgetattr(stream)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
