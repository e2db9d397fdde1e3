"""An epoch of ResNet20 on a CPU core, data path and all: ours against a plain training loop on PIL images.

The epoch is short, 3 batches of 128 random images: a step costs the same whatever the images and wherever in an epoch.
The plain loop loads in the training process, so that this process's CPU seconds hold all of its work.
"""

import time
from collections.abc import Callable

import torch
from torch.utils.data import DataLoader

from benchmarks.data import Reference
from benchmarks.steps import PlainLoop, StepLoop, config, random_images
from benchmarks.timing import Measurement, interleave
from normloss.config import Config, TensorImages
from normloss.data.tensors import TensorData

STEPS = 3
OVERRIDES = ["dataset=cifar10", "model=resnet20", "recipe=cifar10_resnet110", "reg=wd", "device=cpu"]


def measure(blocks: int = 5) -> list[Measurement]:
    """An epoch of 3 steps a block, on one thread; CPU seconds."""
    torch.set_num_threads(1)
    times = interleave(epochs(config(*OVERRIDES)), blocks, time.process_time)
    return [
        Measurement("ResNet20 epoch, speed against a plain loop", times.ratio("plain", to="ours"), "x", at_least=1.1),
        Measurement("ResNet20 step of ours", 1000 * times.median("ours") / STEPS, "ms"),
        Measurement("ResNet20 step of a plain loop", 1000 * times.median("plain") / STEPS, "ms"),
    ]


def epochs(cfg: Config) -> dict[str, Callable[[], object]]:
    """Return an epoch of either side."""
    assert isinstance(cfg.dataset, TensorImages)
    images, cpu = random_images(STEPS * cfg.train.batch_size, cfg.dataset), torch.device("cpu")
    ours = StepLoop(cfg, cpu, TensorData(cfg.dataset, images, images, cfg.seed, cfg.train.batch_size, cpu))
    plain = PlainLoop(cfg, cpu, cfg.reg.lam)
    loader = DataLoader(Reference(images), batch_size=cfg.train.batch_size, shuffle=True)
    return {"ours": lambda: ours.steps(STEPS), "plain": lambda: [plain.step(x, y) for x, y in loader]}
