"""Processes forked from one that has imported what a run imports: each starts in about a second.

Each has its own environment, session, threads (torch.set_num_threads in training/device.py, as OMP_NUM_THREADS is read
when torch is imported) and CUDA device. The parent never touches CUDA and never computes, since a fork takes neither a
device nor threads along. A process that is killed takes no other along.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from normloss.signals import SIGNALS

AUTOGROUP = Path("/proc/self/autogroup")
FORK = multiprocessing.get_context("fork")
Process = multiprocessing.context.ForkProcess


def preload(store: str | None = None) -> None:
    """Import what a run imports, and read which executors a store measured, for the processes started from here on."""
    from normloss import data, models, regularizers  # noqa: F401
    from normloss.training import executors, tracking, trainer  # noqa: F401

    if store is not None:
        executors.measured(store)


def start(work: Callable[[], int], environment: Mapping[str, str]) -> Process:
    """Do `work` in a process with some more environment variables and a session of its own; it exits with what `work`
    returns.

    A session: Ctrl-C reaches it once, through the sweep. Signals are blocked until it listens (StopRequest.listen).
    """
    process = FORK.Process(target=_work, args=(work, dict(environment)))
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return process


def _work(work: Callable[[], int], environment: dict[str, str]) -> None:
    os.setsid()
    # Linux's autogroups share out the cores among sessions, and let `nice` count within one only: the members of
    # `nice python train.py -m ...` would otherwise take as much as whatever else the machine does
    with suppress(OSError):  # no autogroups here
        AUTOGROUP.write_text(str(os.nice(0)))
    os.environ.update(environment)
    sys.exit(work())
