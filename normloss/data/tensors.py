"""A data set that stays on the device as one uint8 tensor; crop, flip and normalisation are one batched operation.

Shapes: N images, C channels, S = size, P = pad, B = batch.
"""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from normloss.config import TensorImages
from normloss.config.schema import steps_per_epoch
from normloss.errors import UserError

EVAL_BATCH = 500  # at most; no batch of the test set is more than four of training's
STREAM = 22  # of the one random order that images held out are taken from


def generator(*key: int) -> torch.Generator:
    """Return a CPU generator for a key such as (seed, epoch): the same stream on every machine and device."""
    # with its length, since SeedSequence takes (seed, epoch) and (seed, epoch, 0) for one
    state = np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


class Split(NamedTuple):
    images: np.ndarray  # uint8 (N, C, S, S)
    labels: np.ndarray  # int64 (N,)
    classes: list[str] | None = None  # their names by label, where the images have any


class Draws(NamedTuple):
    """The random choices of an epoch, by position in it; each (N,)."""

    order: Tensor  # which image
    dy: Tensor  # crop offsets, 0..2P
    dx: Tensor
    flip: Tensor  # bool


def draw(seed: int, epoch: int, images: int, pad: int, flip: float) -> Draws:
    """Draw all random choices of an epoch on the CPU: equal on every device, cheap to enter in the middle."""
    g = generator(seed, epoch)
    return Draws(
        order=torch.randperm(images, generator=g),
        dy=torch.randint(2 * pad + 1, (images,), generator=g),
        dx=torch.randint(2 * pad + 1, (images,), generator=g),
        flip=torch.rand(images, generator=g) < flip,
    )


def pad_images(images: np.ndarray, cfg: TensorImages) -> np.ndarray:
    """Pad (N, C, S, S) to (N, C, S+2P, S+2P) with black, mirrored or mean-coloured borders."""
    if cfg.padding == "reflect":
        return np.pad(images, ((0, 0), (0, 0), (cfg.pad, cfg.pad), (cfg.pad, cfg.pad)), mode="reflect")
    border = np.rint(cfg.mean).astype(np.uint8) if cfg.padding == "mean" else np.zeros(cfg.channels, np.uint8)
    inside, side = slice(cfg.pad, cfg.pad + cfg.size), cfg.size + 2 * cfg.pad
    padded = np.empty((len(images), cfg.channels, side, side), np.uint8)
    padded[:] = border[:, None, None]
    padded[:, :, inside, inside] = images
    return padded


class TensorData:
    """The images on the device; `train` and `in_order` yield normalised float batches."""

    def __init__(
        self, cfg: TensorImages, train: Split, test: Split, seed: int, batch_size: int, device: torch.device,
        val: Split | None = None,
    ) -> None:  # fmt: skip
        self.classes = train.classes
        self.cfg, self.seed, self.batch_size, self.device = cfg, seed, batch_size, device
        val = val or Split(train.images[:0], train.labels[:0])
        self.train_size, self.test_size, self.val_size = (len(split.labels) for split in (train, test, val))
        self.steps_per_epoch = steps_per_epoch(self.train_size, batch_size)
        self.fingerprint = fingerprint(train, test, val)
        padded = torch.from_numpy(pad_images(train.images, cfg)).to(device)
        self.windows = padded.unfold(2, cfg.size, 1).unfold(3, cfg.size, 1)  # (N, C, 2P+1, 2P+1, S, S), a view
        self.labels = torch.from_numpy(train.labels).to(device)
        self.parts = {"train": (self.windows[:, :, cfg.pad, cfg.pad], self.labels)}
        for part, split in (("test", test), ("val", val)):
            self.parts[part] = torch.from_numpy(split.images).to(device), torch.from_numpy(split.labels).to(device)
        self.mean = torch.tensor(cfg.mean, device=device).view(1, -1, 1, 1)
        self.std = torch.tensor(cfg.std, device=device).view(1, -1, 1, 1)

    def describe(self) -> dict[str, Any]:
        """Return which data this is, for meta.json."""
        return {"data": self.fingerprint} | ({"classes": self.classes} if self.classes else {})

    def train(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, y) of each step of `epoch` from `first_step` on; x (B, C, S, S) float32, y (B,) int64."""
        draws = draw(self.seed, epoch, self.train_size, self.cfg.pad, self.cfg.flip)
        order, dy, dx, flip = (choice.to(self.device, non_blocking=True) for choice in draws)
        for step in range(first_step, self.steps_per_epoch):
            batch = slice(step * self.batch_size, (step + 1) * self.batch_size)
            chosen = order[batch]
            x = self.windows[chosen, :, dy[batch], dx[batch]]  # (B, C, S, S) uint8, one gather
            x = torch.where(flip[batch].view(-1, 1, 1, 1), x.flip(3), x)
            yield self.normalise(x), self.labels[chosen]

    def in_order(self, part: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, y) of the images of "test", "val" or "train" in order, without crops and flips."""
        images, labels = self.parts[part]
        size = min(EVAL_BATCH, 4 * self.batch_size)
        for start in range(0, len(labels), size):
            batch = slice(start, start + size)
            yield self.normalise(images[batch]), labels[batch]

    def normalise(self, x: Tensor) -> Tensor:
        """Return (pixel - mean) / std in channels-last memory, which convolutions prefer."""
        out = torch.empty(x.shape, device=x.device, memory_format=torch.channels_last)
        return torch.sub(x, self.mean, out=out).div_(self.std)  # bytes to floats, layout and mean in one pass


def fingerprint(*splits: Split) -> str:
    """Return 16 hex digits that change with any pixel or label."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(np.ascontiguousarray(split.images).data)
        digest.update(np.ascontiguousarray(split.labels).data)
    return digest.hexdigest()[:16]


# held out of training: the test set never chooses anything ---------------------------------------


def choose_held_out(labels: np.ndarray, count: int) -> np.ndarray:
    """Return which `count` of N training images are held out, bool (N,), the same ones for every seed and method.

    Of each class the first in one fixed random order: equally many, or one more of the first classes. Raises UserError
    where a class has too few images.
    """
    images = np.bincount(labels)
    number = len(images)
    if count < number:
        raise UserError(f"dataset.val: must be at least {number}, an image of each class, got {count}")
    wanted = count // number + (np.arange(number) < count % number)
    if (wanted >= images).any():
        short = int((wanted >= images).argmax())
        raise UserError(
            f"dataset.val: must leave images of each class to train on, got {count}: {wanted[short]} images of class"
            f" {short}, which has {images[short]}"
        )
    order = torch.randperm(len(labels), generator=generator(STREAM)).numpy()
    by_class = np.split(order[np.argsort(labels[order], kind="stable")], np.cumsum(images)[:-1])
    chosen = np.zeros(len(labels), bool)
    chosen[np.concatenate([one[:n] for one, n in zip(by_class, wanted, strict=True)])] = True
    return chosen


def hold_out(train: Split, count: int) -> tuple[Split, Split]:
    """Return what is left to train on and `count` images held out, both in the order that they had."""
    held = choose_held_out(train.labels, count)
    left, val = (Split(train.images[part], train.labels[part], train.classes) for part in (~held, held))
    return left, val
