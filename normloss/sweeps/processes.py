"""Processes of a sweep, forked from it once it has imported what a run imports: each starts in about a second.

A process is a run's own all the same: its environment, its session, its threads (torch.set_num_threads in
training/device.py, as OMP_NUM_THREADS is read when torch is imported) and its CUDA device. The sweep itself never
touches CUDA and never computes, since a fork takes neither a device nor threads along. Whichever process is killed,
the others live: nothing stands between the sweep and its members.
"""

import importlib
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from normloss.errors import Interrupted
from normloss.signals import SIGNALS

AUTOGROUP = Path("/proc/self/autogroup")
FORK = multiprocessing.get_context("fork")
Process = multiprocessing.context.ForkProcess
IMPORTED = (
    "torch._dynamo",  # by the first optimizer
    "normloss.data",
    "normloss.models",
    "normloss.regularizers",
    "normloss.training.trainer",
)


def preload() -> None:
    """Import what a run imports, so that the processes started from here on find it there."""
    for name in IMPORTED:
        importlib.import_module(name)


def start_script(script: str, words: list[str], environment: Mapping[str, str]) -> Process:
    """`python SCRIPT WORDS` with some more environment variables, in a session of its own.

    A session: Ctrl-C reaches it once, through the sweep. Signals are blocked until it listens (StopRequest).
    """
    process = FORK.Process(target=_run_script, args=(script, words, dict(environment)))
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return process


def _run_script(script: str, words: list[str], environment: dict[str, str]) -> None:
    from hydra.core.global_hydra import GlobalHydra

    os.setsid()
    keep_priority()
    os.environ.update(environment)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    GlobalHydra.instance().clear()  # the sweep's
    sys.argv = [script, *words]
    runpy.run_path(script, run_name="__main__")


def keep_priority() -> None:
    """Give this session the share of the processor that its nice value stands for.

    Linux's autogroups share out the cores among sessions, and let `nice` count within one only: the members of
    `nice python train.py -m ...` would otherwise take as much as whatever else the machine does.
    """
    with suppress(OSError):  # no autogroups here
        AUTOGROUP.write_text(str(os.nice(0)))


def send_signal(process: Process, number: int) -> None:
    assert process.pid is not None  # it was started
    os.kill(process.pid, number)


def ask(work: Callable[..., Any], *arguments: Any, times: int = 1) -> list[Any]:
    """What `work(*arguments)` returns in each of `times` processes at once.

    Raises RuntimeError where one fails, Interrupted where one is killed, as by a machine that is out of memory.
    """
    pipes, running = [FORK.Pipe(duplex=False) for _ in range(times)], []
    for _, answer in pipes:
        process = FORK.Process(target=_answer, args=(answer, work, *arguments), daemon=True)
        process.start()
        running.append(process)
        answer.close()
    answers = []
    for (question, _), process in zip(pipes, running, strict=True):
        try:
            answers.append(question.recv())
        except EOFError:
            process.join()
            if process.exitcode and process.exitcode < 0:
                name = signal.Signals(-process.exitcode).name
                raise Interrupted(
                    f"a process of this command ({work.__name__}) was killed by {name}; start it again to go on"
                ) from None
            raise RuntimeError(f"{work.__name__} ended with status {process.exitcode} in its process") from None
    for process in running:
        process.join()
    return answers


def _answer(pipe: Connection, work: Callable[..., Any], *arguments: Any) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    pipe.send(work(*arguments))
