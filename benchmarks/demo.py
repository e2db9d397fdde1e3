"""A run of the digits demo from start to end, in a process and a store of its own: its accuracy and its CPU seconds."""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.timing import Measurement
from normloss.config import CONFIGS

# one member of experiment=demo
RUN = ["dataset=digits", "model=resnet8", "reg=nl", "seed=0", "device=cpu", "threads=1", "wandb.mode=disabled"]


def measure(blocks: int = 5) -> list[Measurement]:
    """One run whatever `blocks`, since its seconds are many; user and system time of its process, start-up included.

    Raises RuntimeError with its output where the run fails.
    """
    with tempfile.TemporaryDirectory() as store:
        before = children_seconds()
        command = [sys.executable, str(CONFIGS.parent / "train.py"), *RUN, f"store={store}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        seconds = children_seconds() - before
        if ended.returncode:
            raise RuntimeError(f"the demo's run ended with status {ended.returncode}:\n{ended.stdout}")
        (done,) = Path(store).glob("*/DONE")
        accuracy = 100 - json.loads(done.read_text())["test_error"]
    return [
        Measurement("digits demo, test accuracy", accuracy, "%", at_least=99),
        Measurement("digits demo, a run on one core", seconds, "s", at_most=30),
    ]


def children_seconds() -> float:
    """CPU seconds of this process's children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
