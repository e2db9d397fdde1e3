"""The step of training/step.py with its micro-batches shared among processes, through torch's DDP."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from normloss.config.shares import micro_batches
from normloss.training.distributed import ProcessGroup
from normloss.training.eager import Eager
from normloss.training.step import count_batches, micro_step


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
