"""The update alone, regularizer and SGD on the shapes of a network: CPU seconds on one thread.

Norm loss with fused SGD as train.py runs them, against torch's default SGD(weight_decay), which is a loop on the CPU,
and against the penalty as the paper writes it, differentiated by autograd, with SGD(foreach).
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from benchmarks.overhead import config_of
from benchmarks.timing import Measurement, interleave
from normloss import NormLoss, Regularizer, WeightDecay, models

# updates a block, and targets; WRN-28-10 is bound by memory and has none
NETWORKS: Mapping[str, tuple[str, int, float | None, float | None]] = {
    "resnet110": ("ResNet110", 10, 0.75, 0.25),
    "wrn28_10": ("WRN-28-10", 2, None, None),
}


def measure(blocks: int = 5) -> list[Measurement]:
    """The update's figures, ResNet110 first."""
    measured = []
    for model, (name, updates, to_default, to_autograd) in NETWORKS.items():
        works = {key: repeated(work, updates) for key, work in contenders(model).items()}
        times = interleave(works, blocks, time.process_time)
        default, autograd, wd = (times.ratio("nl", to=other) for other in ("default", "autograd", "wd"))
        measured += [
            Measurement(f"update, nl and fused SGD, {name}", 1e3 * times.median("nl") / updates, "ms"),
            Measurement(f"against torch's SGD(weight_decay), {name}", default, "x", at_most=to_default),
            Measurement(f"against autograd and SGD(foreach), {name}", autograd, "x", at_most=to_autograd),
            Measurement(f"against wd and fused SGD, {name}", wd, "x"),
        ]
    return measured


def contenders(name: str) -> dict[str, Callable[[], object]]:
    """Return one update of each, all on the same weights: the learning rate is 0, which costs what any other does."""
    cfg = config_of("nl", name)
    model = models.build(cfg.model, cfg.dataset.num_classes, cfg.dataset.channels)
    model = model.to(memory_format=torch.channels_last)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    nl, wd = NormLoss(model, lam=1e-2), WeightDecay(model, lam=1e-4, half=True)
    foreach = sgd(model, foreach=True)

    def by_autograd() -> None:
        (1e-2 * sum((1 - weight.flatten(1).norm(dim=1)).square().sum() for weight in nl.weights)).backward()
        foreach.step()

    return {
        "nl": update(nl, sgd(model, fused=True)),
        "wd": update(wd, sgd(model, fused=True)),
        "default": sgd(model, weight_decay=1e-4).step,
        "autograd": by_autograd,
    }


def sgd(model: nn.Module, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, **options)


def update(reg: Regularizer, optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    return lambda: (reg.before_step(), optimizer.step())


def repeated(work: Callable[[], object], times: int) -> Callable[[], object]:
    return lambda: [work() for _ in range(times)]
