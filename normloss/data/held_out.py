"""Images held out of the training set, to choose settings by: the test set is never chosen by."""

import numpy as np
import torch

from normloss.data.order import generator
from normloss.data.tensors import Split
from normloss.errors import UserError

STREAM = 22  # of the one random order that they are taken from


def choose(labels: np.ndarray, count: int) -> np.ndarray:
    """bool (N,): which `count` of N training images are held out, the same ones for every seed and method.

    Of each class the first in one fixed random order: equally many, or one more of the first classes.
    """
    images = np.bincount(labels)
    classes = len(images)
    if count < classes:
        raise UserError(f"dataset.val: must be at least {classes}, an image of each class, got {count}")
    if count >= len(labels):
        raise UserError(f"dataset.val: must be less than the {len(labels)} training images, got {count}")
    wanted = count // classes + (np.arange(classes) < count % classes)
    if (wanted >= images).any():
        short = int((wanted >= images).argmax())
        raise UserError(
            f"dataset.val: must leave images of each class to train on, got {count}, which is {wanted[short]} of class"
            f" {short}'s {images[short]}"
        )
    order = torch.randperm(len(labels), generator=generator(STREAM)).numpy()
    by_class = np.split(order[np.argsort(labels[order], kind="stable")], np.cumsum(images)[:-1])
    chosen = np.zeros(len(labels), bool)
    chosen[np.concatenate([one[:n] for one, n in zip(by_class, wanted, strict=True)])] = True
    return chosen


def hold_out(train: Split, count: int) -> tuple[Split, Split]:
    """What is left to train on, and `count` images held out, both in the order that they had."""
    held = choose(train.labels, count)
    return Split(train.images[~held], train.labels[~held]), Split(train.images[held], train.labels[held])
