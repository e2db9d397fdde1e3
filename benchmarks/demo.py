"""A run of the digits demo from start to end, in a process and a store of its own: its accuracy and its CPU seconds."""

import json
import sys
import tempfile
from pathlib import Path

from benchmarks.timing import Measurement, cpu_seconds
from normloss.config import CONFIGS

# one run of experiment=demo
RUN = ["dataset=digits", "model=resnet8", "reg=nl", "seed=0", "device=cpu", "threads=1", "wandb.mode=disabled"]


def measure(blocks: int = 5) -> list[Measurement]:
    """One run whatever `blocks`, since its seconds are many; raises RuntimeError with its output if it fails."""
    with tempfile.TemporaryDirectory() as store:
        seconds = cpu_seconds([sys.executable, str(CONFIGS.parent / "train.py"), *RUN, f"store={store}"])
        (done,) = Path(store).glob("*/DONE")
        accuracy = 100 - json.loads(done.read_text())["test_error"]
    return [
        Measurement("digits demo, test accuracy", accuracy, "%", at_least=99),
        Measurement("digits demo, a run on one core", seconds, "s", at_most=30),
    ]
