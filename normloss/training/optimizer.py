"""The optimizer of every run: SGD with momentum. Weight decay is a regularizer, so it has none of its own.

Its learning rate and the regularization factor are pure functions of epoch and step; the trainer is their only writer.
"""

import math

import torch
from torch import nn

from normloss.config import Reg, Train


def build(model: nn.Module, cfg: Train, device: torch.device, weight_decay: float = 0.0) -> torch.optim.SGD:
    """Return SGD, in one kernel on a CPU or CUDA; weight_decay: for a timing that compares with torch's own."""
    return torch.optim.SGD(
        model.parameters(),
        lr=cfg.lr,
        momentum=cfg.momentum,
        nesterov=cfg.nesterov,
        weight_decay=weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )


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
