"""Learning rate and regularization factor as pure functions of epoch and step; the trainer is their only writer."""

import math

from normloss.config import Reg, Train


def lr_at(train: Train, epoch: int, step: int) -> float:
    """Return the learning rate of a step: warmup_lr for the first `warmup` steps of the run, then lr * gamma^k
    with k the number of milestones at or before `epoch` (both counted from 0), or the epoch's own of lr_values."""
    if step < train.warmup:
        return train.warmup_lr
    if train.lr_values is not None:
        return train.lr_values[epoch]
    return train.lr * math.prod(train.gamma for milestone in train.milestones if epoch >= milestone)


def lam_at(reg: Reg, epoch: int) -> float:
    """Return the regularization factor of an epoch (section V-C's open question: lower it, or drop it, late)."""
    passed = sum(epoch >= milestone for milestone in reg.lam_milestones)
    return reg.lam_values[passed] if reg.lam_values is not None else reg.lam * reg.lam_gamma**passed
