"""Starts a command before its slow imports: it then prints anywhere; a signal or a wrong argument is one line."""

import argparse
import atexit
import signal
from typing import Any, NoReturn

from normloss import output, signals


def prepare() -> None:
    """Set up streams and signals, which are the whole process's: for a command, never for a library."""
    output.open_streams()
    for number in signals.SIGNALS:
        signal.signal(number, signals.leave_at_once)
    atexit.register(ignore_signals)  # Python takes its handlers away as it ends: a signal would then kill what is done


def ignore_signals() -> None:
    """Ignore signals while the process ends: its work is done, and its exit status stays."""
    for number in signals.SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Parser(argparse.ArgumentParser):
    """The arguments of a command, whose docstring is its --help; a wrong argument is one line and exit status 2."""

    def __init__(self, description: str | None = None, **options: Any) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"normloss: {message.removeprefix('argument ')}; see {self.prog} --help\n")
