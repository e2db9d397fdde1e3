"""A command's first moments, before its slow imports: from here on it prints anywhere, and a signal is one line."""

import atexit
import signal

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
