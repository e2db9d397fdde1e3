"""One training step, the same for every method. Nothing in it copies from the device.

Shapes: B images per batch, K classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from normloss.config import Train
from normloss.config.shares import micro_batches
from normloss.regularizers import Regularizer


def train_step(
    model: nn.Module, reg: Regularizer, optimizer: Optimizer, x: Tensor, y: Tensor, cfg: Train
) -> tuple[Tensor, Tensor]:
    """Update the weights once; return the batch's mean cross entropy, without the penalty, and its number of errors."""
    optimizer.zero_grad(set_to_none=True)
    mean_ce, wrong = x.new_zeros(()), y.new_zeros(())
    slices = micro_batches(len(x), cfg.micro_batch)
    for k, (start, end) in enumerate(slices):
        share = (end - start) / len(x)
        ce, errors = micro_step(model, reg, x[start:end], y[start:end], cfg, share, update=k == 0)
        mean_ce += ce * share
        wrong += errors
    count_batches(model, len(slices))
    reg.before_step()
    optimizer.step()
    reg.after_step(optimizer)
    return mean_ce, wrong


def micro_step(
    model: nn.Module, reg: Regularizer, x: Tensor, y: Tensor, cfg: Train, share: float, update: bool
) -> tuple[Tensor, Tensor]:
    """Add a micro-batch's share to the gradients; return its mean cross entropy and its number of errors."""
    x.requires_grad_(reg.needs_input_grad)
    with autocast(x.device, cfg.precision), running_statistics(model, update):
        logits = model(x)  # (B, K)
    ce = F.cross_entropy(logits.float(), y)
    ((ce + reg.loss(x, logits)) * share).backward()
    return ce.detach(), (logits.detach().argmax(1) != y).sum()


@contextmanager
def running_statistics(model: nn.Module, update: bool) -> Iterator[None]:
    """Within this block batch norm updates running statistics only if `update`: not in further replicas (D17).

    It counts no batches: count_batches does, for all layers in one operation.
    """
    norms = batch_norms(model)
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.num_batches_tracked = None
        if not update:
            norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter


def count_batches(model: nn.Module, batches: int) -> None:
    """Add to the counters of batch norm, which nothing here reads but the state dict of every torch model holds."""
    counters = [norm.num_batches_tracked for norm in batch_norms(model) if norm.num_batches_tracked is not None]
    if counters:
        torch._foreach_add_(counters, batches)


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
