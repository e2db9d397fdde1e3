"""Standard streams of a command: closed ones, a terminal that is gone, characters that they cannot spell."""

import errno
import io
import os
import sys
import termios
from typing import Any


def open_streams() -> None:
    """Send output that was closed nowhere, and print a question mark for a character that the encoding lacks."""
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
    """Standard output on a terminal; a closed terminal raises BrokenPipeError, as a pipe that nobody reads does."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno == errno.EIO:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
            raise


def leave_closed_terminal() -> None:
    """Send standard output and error nowhere if their terminal is gone: writing to it would raise."""
    for stream in (1, 2):
        try:
            termios.tcgetattr(stream)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def discard_stdout() -> None:
    """Send standard output nowhere, once nobody reads it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report(line: str) -> None:
    """Print one line for the user on standard error."""
    leave_closed_terminal()
    print(f"normloss: {line}", file=sys.stderr, flush=True)
