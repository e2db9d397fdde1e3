"""The step of training/step.py as it is written, with the model compiled, and shared among processes by torch's DDP.

The tensors that step(x, y) returns are not written to later. Weights, optimizer and regularizer are those that an
executor was built on, so that every executor resumes from the others' checkpoints.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from normloss.config import Train
from normloss.config.shares import micro_batches
from normloss.errors import UserError, named
from normloss.regularizers import Regularizer
from normloss.training.distributed import ProcessGroup
from normloss.training.step import count_batches, micro_step, train_step


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


class DistributedStep(Eager):
    """train_step with shared micro-batches: gradients are summed by DDP, cross entropies and errors after it.

    A process whose share of an epoch's last, short batch is empty steps with weight 0, so that none waits for it.
    """

    name = "ddp"

    def __init__(self, *parts: Any, group: ProcessGroup) -> None:
        super().__init__(*parts)
        self.group = group
        # running statistics are those of rank 0, which evaluates and saves (D17)
        self.replica = DistributedDataParallel(self.model, broadcast_buffers=False)

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Take train_step on this process's images x (B', C, S, S) and the labels of the whole batch y (B,)."""
        self.optimizer.zero_grad(set_to_none=True)
        part, every = self.group.part, micro_batches(len(y), self.cfg.micro_batch)
        own, idle = part.of(every)
        totals = x.new_zeros(2, dtype=torch.float64)  # mean cross entropy, errors
        for k, (start, end) in enumerate(own):
            xb, yb = x[start - own[0][0] : end - own[0][0]], y[start:end]
            together = nullcontext() if k == len(own) - 1 else self.replica.no_sync()
            share, update = (0.0 if idle else (end - start) / len(y)), k == 0 and self.group.is_rank0
            with together:  # DDP divides by the number of processes
                ce, wrong = micro_step(self.replica, self.reg, xb, yb, self.cfg, share * part.world, update)
            totals += torch.stack([ce * share, wrong * (not idle)])
        self.group.dist.all_reduce(totals)
        count_batches(self.model, len(every))  # as if one process had trained them
        self.reg.before_step()
        self.optimizer.step()
        self.reg.after_step(self.optimizer)
        return totals[0].to(ce.dtype), totals[1].to(y.dtype)
