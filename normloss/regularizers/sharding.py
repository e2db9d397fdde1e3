"""Weights that FSDP2 has cut into shards (DTensor): each process serves the filters that it has."""

from typing import Any

from torch import Tensor, nn

from normloss.regularizers.kinds import Weight


def is_sharded(tensor: Tensor) -> bool:
    """Told without importing torch.distributed.tensor, which takes a second."""
    return type(tensor) not in (nn.Parameter, Tensor) and hasattr(tensor, "to_local")


def local(tensor: Any) -> Tensor:
    """This process's part, sharing its memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Any) -> Tensor:
    """All of it on every process: call it on all of them."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def check_rows(weights: list[Weight], method: str) -> None:
    """Raises ValueError where a filter is cut in pieces."""
    for weight in weights:
        if is_sharded(weight.tensor):
            dims = [placement.dim for placement in weight.tensor.placements if placement.is_shard()]  # type: ignore[attr-defined]
            if weight.groups or any(dims):
                raise ValueError(f"{method}: the filters of {weight.name!r} are cut between processes: shard axis 0")


def check_whole(weights: list[Weight], method: str) -> None:
    """Raises ValueError for a weight of which a process has a part only."""
    for weight in weights:
        if is_sharded(weight.tensor):
            raise ValueError(
                f"{method} needs the whole matrix of {weight.name!r}, of which this process has a shard: leave it out"
                " with layers=... or do not shard it"
            )
