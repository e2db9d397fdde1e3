"""CIFAR's batches (crop, flip, normalise to float) against PIL and torchvision's transforms; an epoch with either.

The epoch is of ResNet20, ours against a plain training loop on PIL images, and short, 3 batches of 128: a step costs
the same wherever in an epoch it is. One core, CPU seconds. Images are random bytes: neither way looks at what they
show. The plain loop loads in the training process, so that this process's CPU seconds hold all of its work.
"""

import time
from itertools import islice
from typing import Any

import torch
import torchvision.transforms as T
from PIL import Image
from torch.utils.data import DataLoader, default_collate

from benchmarks.steps import PlainLoop, StepLoop, config, random_images
from benchmarks.timing import Work, against_pil, interleave, row
from normloss.config import Cifar10
from normloss.data.tensors import TensorData

BATCH, BATCHES, STEPS = 128, 8, 3


def measure(blocks: int = 5) -> list[dict[str, Any]]:
    """An epoch of 1,024 images without a network, and one of 384 with it, a block."""
    cfg = config("dataset=cifar10", "model=resnet20", "recipe=cifar10_resnet110", "reg=wd", "device=cpu")
    assert isinstance(cfg.dataset, Cifar10)
    split, cpu = random_images(BATCHES * BATCH, cfg.dataset), torch.device("cpu")
    data = TensorData(cfg.dataset, split, split, seed=0, batch_size=BATCH, device=cpu)
    pixels = split.images.transpose(0, 2, 3, 1)  # (N, 32, 32, 3)
    transform = T.Compose([
        T.RandomCrop(32, padding=4),
        T.RandomHorizontalFlip(),
        T.ToTensor(),
        T.Normalize([value / 255 for value in cfg.dataset.mean], [value / 255 for value in cfg.dataset.std]),
    ])  # fmt: skip

    def collate(batch: list[int]) -> Any:
        """The usual way: each image through PIL and torchvision's transforms, then collated."""
        return default_collate([(transform(Image.fromarray(pixels[i])), int(split.labels[i])) for i in batch])

    theirs: DataLoader = DataLoader(range(len(pixels)), BATCH, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]
    works: dict[str, Work] = {"ours": lambda: list(data.train(0)), "PIL": lambda: list(theirs)}
    times = interleave(works, blocks, time.process_time)
    step, plain = StepLoop(cfg, cpu, data), PlainLoop(cfg, cpu, cfg.reg.lam)
    short = {
        "ours": lambda: step.steps(STEPS),
        "plain": lambda: [plain.step(*batch) for batch in islice(theirs, STEPS)],
    }
    epochs = interleave(short, blocks, time.process_time)
    return [
        *against_pil("CIFAR batches", times, len(pixels), at_least=10),
        row("ResNet20 epoch, speed against a plain loop", epochs.ratio("plain", to="ours"), "x", at_least=1.1),
        row("ResNet20 step of ours", 1000 * epochs.median("ours") / STEPS, "ms"),
        row("ResNet20 step of a plain loop", 1000 * epochs.median("plain") / STEPS, "ms"),
    ]
