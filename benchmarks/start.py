"""The cost of a run beyond its training, against importing torch and taking one step of SGD; a run of the digits demo.

CPU seconds, user and system, of processes on one thread, W&B disabled. A run of one small step is timed from start to
end, and what reading its images costs is taken off.
"""

import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.steps import config
from benchmarks.timing import cpu_seconds, row
from normloss import data
from normloss.config import CONFIGS, Config

STARTS = 7
TORCH = """
import torch
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model(torch.randn(2, 4)).sum().backward()
optimizer.step()
"""
HERE = ["device=cpu", "threads=1", "wandb.mode=disabled"]
SHORT = [
    "train.epochs=1", "train.milestones=[]", "train.max_steps=1", "train.eval_batches=1", "train.batch_size=4", *HERE
]  # fmt: skip
DIGITS = ["dataset=digits", "model=resnet8"]
CIFAR = ["dataset=cifar10", "model=resnet20", "recipe=cifar10_resnet110"]


def measure(blocks: int = 5) -> list[dict[str, Any]]:
    """Medians over 7 starts of each in turn, and one run of the demo, whatever `blocks`."""
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder) / "cifar.npz")
        kinds = {"digits": DIGITS, "cifar": [*CIFAR, f"data_dir={images}"]}
        seconds: dict[str, list[float]] = {name: [] for name in ("torch", *kinds)}
        for k in range(STARTS):
            seconds["torch"].append(cpu_seconds([sys.executable, "-c", TORCH]))
            for name, words in kinds.items():
                seconds[name].append(train_seconds([*words, *SHORT], Path(folder) / f"{name}{k}"))
        # in a fresh process: memory that was in use before is faster
        with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
            configs = {name: [config(*words, *SHORT)] * 3 for name, words in kinds.items()}
            reading = {name: median(pool.map(reading_seconds, three, chunksize=1)) for name, three in configs.items()}
        train_seconds(["-m", *DIGITS, *SHORT, f"seed=range(0,{STARTS})"], Path(folder) / "sweep")
        metas = [json.loads(path.read_text()) for path in Path(folder).glob("sweep/*/meta.json")]
        members = [meta["start_seconds"] for meta in metas]
        demo = train_seconds([*DIGITS, "reg=nl", "seed=0", *HERE], Path(folder) / "demo")
        (done,) = Path(folder).glob("demo/*/DONE")
        accuracy = 100 - json.loads(done.read_text())["test_error"]
    baseline = median(seconds["torch"])
    ratio = {name: (median(seconds[name]) - reading[name]) / baseline for name in kinds}
    return [
        row("digits run of a step / torch alone", ratio["digits"], "x", at_most=1.45),
        row("CIFAR run of a step / torch alone", ratio["cifar"], "x", at_most=1.45),
        row("torch alone: import and a step", baseline, "s"),
        row("start of a member of a sweep", median(members), "s", at_most=1.5),
        row("digits demo, test accuracy", accuracy, "%", at_least=99),
        row("digits demo, a run on one core", demo, "s", at_most=30),
    ]


def write_images(file: Path) -> Path:
    """Write as many black images as CIFAR-10 has; return the file."""
    arrays: dict[str, Any] = {}
    for part, images in (("train", 50_000), ("test", 10_000)):
        arrays[f"{part}_images"] = np.zeros((images, 32, 32, 3), np.uint8)
        arrays[f"{part}_labels"] = np.arange(images) % 10
    np.savez(file, **arrays)
    return file


def reading_seconds(cfg: Config) -> float:
    """Return the CPU seconds of reading a data set."""
    torch.set_num_threads(1)
    before = time.process_time()
    data.build(cfg, torch.device("cpu"))
    return time.process_time() - before


def train_seconds(words: list[str], store: Path) -> float:
    """Return the CPU seconds of a command of train.py."""
    return cpu_seconds([sys.executable, str(CONFIGS.parent / "train.py"), *words, f"store={store}"])
