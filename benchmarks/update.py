"""The update alone, regularizer and SGD on the shapes of a network: CPU seconds on one thread.

Norm loss with fused SGD as train.py runs them, against torch's default SGD(weight_decay), which is a loop on the CPU,
and against the penalty as the paper writes it, differentiated by autograd, with SGD(foreach).
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.overhead import Setting, config_of
from benchmarks.timing import Measurement, Times, interleave
from normloss import NormLoss, Regularizer, WeightDecay, models

UPDATES = {"resnet110": 10, "wrn28_10": 2}  # a block
NAMES = {"resnet110": "ResNet110", "wrn28_10": "WRN-28-10"}


def measure(blocks: int = 5) -> list[Measurement]:
    """The update's figures, ResNet110 first; WRN-28-10 is bound by memory and has no target."""
    times = interleave(repeated(contenders("resnet110"), UPDATES["resnet110"]), blocks, time.process_time)
    measured = ratios("resnet110", times, to_default=0.75, to_autograd=0.25)
    times = interleave(repeated(contenders("wrn28_10"), UPDATES["wrn28_10"]), blocks, time.process_time)
    return [*measured, *ratios("wrn28_10", times)]


def ratios(
    model: str, times: Times, to_default: float | None = None, to_autograd: float | None = None
) -> list[Measurement]:
    ms = 1e3 * times.median("nl") / UPDATES[model]
    return [
        Measurement(subject("update, nl and fused SGD", model), ms, "ms"),
        Measurement(
            subject("against torch's SGD(weight_decay)", model), times.ratio("nl", "default"), "x", at_most=to_default
        ),
        Measurement(
            subject("against autograd and SGD(foreach)", model), times.ratio("nl", "autograd"), "x", at_most=to_autograd
        ),
        Measurement(subject("against wd and fused SGD", model), times.ratio("nl", "wd"), "x"),
    ]


def subject(what: str, model: str) -> str:
    return f"{what}, {NAMES[model]}"


def contenders(name: str) -> dict[str, Callable[[], None]]:
    """Return one update of each, all on the same weights: the learning rate is 0, which costs what any other does."""
    cfg = config_of("nl", Setting(model=name, device="cpu"))
    model = models.build(cfg.model, cfg.dataset.num_classes, cfg.dataset.channels)
    model = model.to(memory_format=torch.channels_last)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    nl, wd = NormLoss(model, lam=1e-2), WeightDecay(model, lam=1e-4, half=True)
    return {
        "nl": update(nl, sgd(model, fused=True)),
        "wd": update(wd, sgd(model, fused=True)),
        "default": sgd(model, weight_decay=1e-4).step,
        "autograd": by_autograd(nl.weights, sgd(model, foreach=True)),
    }


def sgd(model: nn.Module, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, **options)


def update(reg: Regularizer, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    def work() -> None:
        reg.before_step()
        optimizer.step()

    return work


def by_autograd(weights: list[Tensor], optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    def work() -> None:
        penalty = sum((1 - weight.flatten(1).norm(dim=1)).square().sum() for weight in weights)
        (1e-2 * penalty).backward()
        optimizer.step()

    return work


def repeated(works: dict[str, Callable[[], None]], times: int) -> dict[str, Callable[[], None]]:
    def repeat(work: Callable[[], None]) -> None:
        for _ in range(times):
            work()

    return {name: partial(repeat, work) for name, work in works.items()}
