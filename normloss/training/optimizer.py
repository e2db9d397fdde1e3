"""The optimizer of every run: SGD with momentum. Weight decay is a regularizer, so it has none of its own."""

import torch
from torch import nn

from normloss.config import Train
from normloss.errors import named
from normloss.training.device import out_of_memory


def build(model: nn.Module, cfg: Train, device: torch.device, weight_decay: float = 0.0) -> torch.optim.SGD:
    """Return SGD, in one kernel if the device has one; weight_decay: for a timing that compares with torch's own."""
    return torch.optim.SGD(
        model.parameters(),
        lr=cfg.lr,
        momentum=cfg.momentum,
        nesterov=cfg.nesterov,
        weight_decay=weight_decay,
        fused=fused(device, cfg),
    )


def fused(device: torch.device, cfg: Train) -> bool:
    """Return whether the device steps in one kernel: tried on one weight; a failure is printed.

    Only under train.executor=auto; a named executor gets what it was made for, or the error.
    """
    if device.type not in ("cpu", "cuda"):
        return False
    if cfg.executor != "auto":
        return True
    weight = nn.Parameter(torch.zeros(1, device=device))
    weight.grad = torch.zeros_like(weight)
    try:
        torch.optim.SGD([weight], lr=cfg.lr, momentum=cfg.momentum, nesterov=cfg.nesterov, fused=True).step()
    except Exception as error:  # whatever this torch or driver lacks, SGD has other forms
        if out_of_memory(error):
            raise
        print(f"SGD in one kernel failed ({named(error)}); continuing with several", flush=True)
        return False
    return True
