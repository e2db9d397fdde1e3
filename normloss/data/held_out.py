"""Images held out of the training set, to choose settings by: the test set never chooses anything."""

from collections.abc import Sequence

import numpy as np
import torch

from normloss.data.tensors import Split, generator
from normloss.errors import UserError

STREAM = 22  # of the one random order that they are taken from


def choose(labels: np.ndarray, count: int, classes: Sequence[str] | None = None) -> np.ndarray:
    """Return which `count` of N training images are held out, bool (N,), the same ones for every seed and method.

    Of each class the first in one fixed random order: equally many, or one more of the first classes. classes: their
    names, for the UserError where a class has too few images.
    """
    images = np.bincount(labels)
    number = len(images)
    if count < number:
        raise UserError(f"dataset.val: must be at least {number}, an image of each class, got {count}")
    wanted = count // number + (np.arange(number) < count % number)
    if (wanted >= images).any():
        short = int((wanted >= images).argmax())
        name = classes[short] if classes else f"class {short}"
        raise UserError(
            f"dataset.val: must leave images of each class to train on, got {count}: {wanted[short]} images of {name},"
            f" which has {images[short]}"
        )
    order = torch.randperm(len(labels), generator=generator(STREAM)).numpy()
    by_class = np.split(order[np.argsort(labels[order], kind="stable")], np.cumsum(images)[:-1])
    chosen = np.zeros(len(labels), bool)
    chosen[np.concatenate([one[:n] for one, n in zip(by_class, wanted, strict=True)])] = True
    return chosen


def hold_out(train: Split, count: int, classes: Sequence[str] | None = None) -> tuple[Split, Split]:
    """Return what is left to train on and `count` images held out, both in the order that they had."""
    held = choose(train.labels, count, classes)
    return Split(train.images[~held], train.labels[~held]), Split(train.images[held], train.labels[held])
