"""The optimizer of every run: SGD with momentum. Weight decay is a regularizer, so it has none of its own."""

import torch
from torch import nn

from normloss.config import Train


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
