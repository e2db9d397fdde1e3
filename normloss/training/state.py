"""Where a run is in its training."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class State:
    """Where a run is; with model, optimizer, regularizer and torch's generators, what a checkpoint holds."""

    epoch: int = 0  # under way, counted from 0
    step: int = 0  # done, over the run
    seconds: float = 0.0  # spent on the epoch under way
    ce: list[Tensor] = field(default_factory=list)  # mean cross entropy of each step of the epoch under way
    wrong: list[Tensor] = field(default_factory=list)  # errors of each of these steps
    began: list[Tensor] | None = None  # the filter matrices that the epoch under way began with, where they are known
