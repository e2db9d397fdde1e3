"""Weights that are DTensors: shards of FSDP2 or tensor parallelism, or replicas on every process."""

from typing import Any

from torch import Tensor, nn

from normloss.regularizers.kinds import Weight


def is_dtensor(tensor: Any) -> bool:
    """Return whether a tensor is a DTensor, without importing torch.distributed.tensor, which takes a second."""
    return type(tensor) not in (nn.Parameter, Tensor) and hasattr(tensor, "to_local")


def local(tensor: Any) -> Tensor:
    """Return this process's part of a tensor, sharing its memory."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def whole(tensor: Any) -> Tensor:
    """Return all of a tensor on every process; call it on all of them."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def reduce_gradient(parameter: Any) -> None:
    """Give a gradient the placements of its weight: added to parts that are still to be summed, a penalty would count
    once for each process."""
    if is_dtensor(parameter) and parameter.grad.placements != parameter.placements:
        parameter.grad = parameter.grad.redistribute(placements=parameter.placements)


def check_placements(weight: Weight, method: str, filterwise: bool) -> None:
    """Raise ValueError where the processes hold parts of a weight that the method needs whole.

    filterwise: whole filters are enough.
    """
    tensor: Any = weight.parameter
    if not is_dtensor(tensor):
        return
    cut = [placement for placement in tensor.placements if not placement.is_replicate()]
    if cut and not filterwise:
        raise ValueError(
            f"{method} needs the whole matrix of {weight.name!r}, of which this process has a shard: leave it out"
            " with layers=... or do not shard it"
        )
    if cut and (weight.groups or any(getattr(placement, "dim", None) not in weight.axes for placement in cut)):
        raise ValueError(f"{method}: the filters of {weight.name!r} are cut between processes: shard axis 0")
