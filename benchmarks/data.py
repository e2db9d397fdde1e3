"""CIFAR's batches (crop, flip, normalise to float) against PIL and torchvision's transforms, in images/s of one core.

Images are random bytes: neither way looks at what they show.
"""

import time
from collections.abc import Iterator

import torch
import torchvision.transforms as T
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from benchmarks.steps import random_images
from benchmarks.timing import Measurement, interleave
from normloss.config import Cifar10
from normloss.data.tensors import Split, TensorData

BATCH = 128
IMAGES = 8 * BATCH
CIFAR = Cifar10(
    name="cifar10", num_classes=10, channels=3, size=32, pad=4, padding="zero", flip=0.5,
    mean=[125.3, 123.0, 113.9], std=[63.0, 62.1, 66.7],
)  # fmt: skip


def measure(blocks: int = 5) -> list[Measurement]:
    """An epoch of 1,024 images a block, on one thread; CPU seconds."""
    torch.set_num_threads(1)
    split = random_images(IMAGES, CIFAR)
    data = TensorData(CIFAR, split, split, seed=0, batch_size=BATCH, device=torch.device("cpu"))
    reference = Reference(split)
    works = {"ours": lambda: list(data.train(0)), "PIL": lambda: list(reference.batches())}
    times = interleave(works, blocks, time.process_time)
    return [
        Measurement("CIFAR batches, speed against PIL + torchvision", times.ratio("PIL", to="ours"), "x", at_least=10),
        Measurement("CIFAR batches of ours", IMAGES / times.median("ours"), "images/s"),
        Measurement("CIFAR batches by PIL + torchvision", IMAGES / times.median("PIL"), "images/s"),
    ]


class Reference(Dataset):
    """The usual way: each image through PIL and torchvision's transforms, then collated."""

    def __init__(self, split: Split) -> None:
        self.images, self.labels = split.images.transpose(0, 2, 3, 1), split.labels  # (N, 32, 32, 3)
        self.transform = T.Compose([
            T.RandomCrop(32, padding=4),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize([value / 255 for value in CIFAR.mean], [value / 255 for value in CIFAR.std]),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), int(self.labels[i])

    def batches(self) -> Iterator[list[Tensor]]:
        order = torch.randperm(len(self)).tolist()
        for start in range(0, len(self), BATCH):
            yield default_collate([self[i] for i in order[start : start + BATCH]])
