"""The state of a run in training."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class State:
    """Position and records of a run; with model, optimizer, regularizer and torch's generators, a checkpoint."""

    epoch: int = 0  # current, counted from 0
    step: int = 0  # done, over the run
    seconds: float = 0.0  # spent on the epoch under way
    ce: list[Tensor] = field(default_factory=list)  # mean cross entropy of each step of the epoch under way
    wrong: list[Tensor] = field(default_factory=list)  # errors of each of these steps
    began: list[Tensor] | None = None  # the filter matrices that the epoch under way began with, where they are known
