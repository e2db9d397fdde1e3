"""One run by several processes of a machine: torchrun --nproc-per-node 2 train.py dataset=imagenet reg=nl

Each process trains its share of a step's micro-batches (training/eager.py): two processes of 64 images train the run of
one process with train.micro_batch=64, under the same id, and either resumes from the other's checkpoints. Rank 0 owns
the run folder, prints and evaluates; the others train along. torch is imported where processes join, so that a finished
run answers at once.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from normloss.config import Config
from normloss.config.shares import Part
from normloss.errors import Stop, UserError
from normloss.training import gpus

PATIENCE = timedelta(hours=3)  # for the first process, which evaluates alone


def processes() -> int:
    """Return how many processes torchrun started; 1 without it, whatever another launcher left in the environment."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def refuse_many_runs() -> None:
    """Raises UserError if torchrun was given a sweep, a queue or a tuning comparison."""
    if processes() > 1:
        raise UserError("torchrun: trains one run by several processes, got a command for many runs")


class SingleProcess:
    """A run in a process of its own."""

    part = Part(0, 1)
    is_rank0 = True

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true in one of the processes."""
        return flag

    def barrier(self) -> None:
        """Wait until all processes are here."""

    def from_rank0(self, work: Callable[[], Any]) -> Any:
        """Run `work` on rank 0 only and return its result everywhere; a Stop that it raises ends all processes."""
        return work()

    def on_rank0(self, work: Callable[[], Any]) -> Any:
        """Run `work` on rank 0 only and return its result there, None elsewhere; a Stop ends all processes."""
        kept: list[Any] = []
        self.from_rank0(lambda: kept.append(work()))
        return kept[0] if kept else None


class ProcessGroup(SingleProcess):
    """A run by several processes, which all call each method in the same order."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self.dist = dist
        self.part = Part(dist.get_rank(), dist.get_world_size())
        self.is_rank0 = self.part.rank == 0
        host = dist.new_group(backend="gloo", timeout=PATIENCE)  # over the CPUs: no device waits for it
        assert isinstance(host, dist.ProcessGroup)  # all processes are in it
        self.host = host

    def any(self, flag: bool) -> bool:
        import torch

        flags = torch.tensor(int(flag))
        self.dist.all_reduce(flags, self.dist.ReduceOp.MAX, group=self.host)
        return bool(flags)

    def barrier(self) -> None:
        self.any(False)

    def from_rank0(self, work: Callable[[], Any]) -> Any:
        found, stop = None, None
        if self.is_rank0:
            try:
                found = work()
            except Stop as asked:
                stop = asked
        shared = [found, stop and stop.status]
        self.dist.broadcast_object_list(shared, src=0, group=self.host)
        if stop:
            raise stop
        if shared[1] is not None:
            raise SystemExit(shared[1])  # rank 0 says why
        return shared[0]


@contextmanager
def joined(cfg: Config) -> Iterator[SingleProcess]:
    """Join the processes that train the run of a config; raises UserError if several cannot."""
    if processes() == 1:
        yield SingleProcess()
        return
    if os.environ["RANK"] != "0":
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for as long as the process lives
    check(cfg, processes())
    import torch
    import torch.distributed as dist

    cuda = cfg.device in ("auto", "cuda") and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield ProcessGroup()
    finally:
        dist.destroy_process_group()


def check(cfg: Config, count: int) -> None:
    """Raises UserError for a config that several processes cannot train as one does."""
    train = cfg.train
    if cfg.dataset.name != "imagenet":
        raise UserError(f"torchrun: is for dataset=imagenet, got dataset={cfg.dataset.name}; python train.py trains it")
    if cfg.device in ("auto", "cuda") and 0 < (there := len(gpus.visible())) < count:
        raise UserError(f"torchrun: needs a GPU for each process, got {count} processes and {there} GPUs")
    if cfg.reg.name == "jac":
        raise UserError("torchrun: cannot train reg=jac, whose penalty has to pass through each process's gradients")
    if getattr(cfg.model, "dropout", 0.0):
        raise UserError("torchrun: cannot draw dropout as one process does, got model.dropout")
    if train.executor not in ("auto", "eager"):
        raise UserError(f"torchrun: trains eagerly, got train.executor={train.executor}")
    size = train.micro_batch or train.batch_size
    if (train.batch_size // size) % count:
        raise UserError(
            f"torchrun: the number of processes must divide a step's micro-batches, got {count} processes and"
            f" {train.batch_size // size} of {size} images"
        )
