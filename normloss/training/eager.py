"""The step of training/step.py as it is written, and with the model compiled.

The tensors that step(x, y) returns are not written to later. Weights, optimizer and regularizer are those that an
executor was built on, so that every executor resumes from the others' checkpoints.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from normloss.config import Train
from normloss.errors import UserError, named
from normloss.regularizers import Regularizer
from normloss.training.step import train_step


class Eager:
    """The step as it is written."""

    name = "eager"

    def __init__(self, model: nn.Module, reg: Regularizer, optimizer: Optimizer, cfg: Train) -> None:
        self.model, self.reg, self.optimizer, self.cfg = model, reg, optimizer, cfg

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Take train_step on a batch x (B, C, S, S), y (B,); return mean cross entropy and number of errors."""
        return train_step(self.model, self.reg, self.optimizer, x, y, self.cfg)


class Compiled(Eager):
    """The step with the model's forward and backward compiled; the raw model keeps the weights and the state dict.

    dynamic=False: a short batch, and micro-batches after the first, get programs of their own; the numbers of an epoch
    do not depend on which shape came first. options: of torch.compile. Raises UserError where it cannot compile.
    """

    name = "compile"

    def __init__(self, model: nn.Module, reg: Regularizer, optimizer: Optimizer, cfg: Train, **options: Any) -> None:
        compiled: Any = torch.compile(model, dynamic=False, **options)  # an nn.Module; torch says a function
        super().__init__(compiled, reg, optimizer, cfg)

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with report_compiler():
            return super().step(x, y)


@contextmanager
def report_compiler() -> Iterator[None]:
    """Within this block a compiler that fails raises UserError."""
    try:
        yield
    except torch._dynamo.exc.TorchDynamoException as error:  # torch has no public name for what a compiler raises
        raise UserError(f"train.executor: compile failed ({named(error)}); choose eager") from None
