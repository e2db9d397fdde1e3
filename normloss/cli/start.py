"""A command's first moments, before its slow imports: from here on it prints anywhere, and Ctrl-C is one line."""

import atexit
import errno
import io
import os
import signal
import sys
from typing import Any

from normloss.errors import Interrupted
from normloss.signals import SIGNALS


def prepare() -> None:
    """For a process that is a command, and for no other: streams and signals are the whole process's."""
    open_streams()
    for number in SIGNALS:
        signal.signal(number, leave_at_once)
    atexit.register(ignore_signals)  # Python takes its handlers away as it ends: a signal would then kill what is done


def open_streams() -> None:
    """Output that was closed goes nowhere; a character that it cannot spell becomes a question mark."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # takes the closed stream's number, which a run's file must not get: whoever prints would write into it
            number = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode))
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")
    if sys.stdout.isatty():
        raw = io.BufferedWriter(Terminal(1, "w", closefd=False))
        sys.stdout = io.TextIOWrapper(raw, sys.stdout.encoding, sys.stdout.errors, line_buffering=True)


class Terminal(io.FileIO):
    """Standard output on a terminal, which once it is closed is a pipe that nobody reads."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno == errno.EIO:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
            raise


def ignore_signals() -> None:
    """While the process ends: the work is done, and its exit status stays."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def leave_at_once(number: int, frame: object) -> None:
    """A signal while there is nothing to save."""
    line = f"normloss: stopped by {signal.Signals(number).name}; start it again to go on\n"
    try:
        os.write(2, line.encode())  # print could be what the signal interrupted
    finally:
        os._exit(Interrupted.status)  # an exception could be caught by Hydra, which would make it a wrong config
