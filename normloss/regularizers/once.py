"""A penalty counts once for each update of a weight, however often before_step() is called before the optimizer steps.

In gradient accumulation some trainers skip optimizer.step() and zero_grad() without telling, so that a loop's
before_step() runs on gradients that hold the penalty already. A hook of torch.optim says which weights were stepped on,
one of autograd, on one weight for all that were served together, when gradients arrive. Only counters are compared,
nothing is read from the device.
"""

import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from normloss.regularizers.sharding import local


class Held(NamedTuple):
    """A gradient that a penalty is in, as it was when that was added."""

    parameter: Callable[[], nn.Parameter | None]  # weak references: the next zero_grad() frees the memory
    gradient: Callable[[], Tensor | None]
    weight_version: int
    gradient_version: int

    @classmethod
    def of(cls, parameter: nn.Parameter) -> "Held":
        gradient = parameter.grad
        assert gradient is not None
        return cls(weakref.ref(parameter), weakref.ref(gradient), *versions(parameter, gradient))

    def changes(self) -> int | None:
        """How often the gradient was changed in place since; None where it is another or the weight has moved."""
        parameter, gradient = self.parameter(), self.gradient()
        if parameter is None or gradient is None or parameter.grad is not gradient:
            return None
        weight_version, gradient_version = versions(parameter, gradient)
        return gradient_version - self.gradient_version if weight_version == self.weight_version else None


def versions(parameter: Tensor, gradient: Tensor) -> tuple[int, int]:
    """Counters of changes in place; what fused optimizers do is not counted."""
    return local(parameter)._version, local(gradient)._version


class Addition:
    """A penalty in some gradients, each until it is stepped on or cleared."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.held = {id(parameter): Held.of(parameter) for parameter in parameters}
        self.watched: Held | None = None
        self.handle: RemovableHandle
        self.watch()

    def watch(self) -> None:
        """Count what arrives for the first gradient that is as it was left."""
        if self.watched is not None:
            self.handle.remove()
        self.watched, self.arrived = None, 0
        for held in self.held.values():
            if held.changes() == 0 and (parameter := held.parameter()) is not None:
                self.watched, self.handle = held, parameter.register_hook(self._arrive)
                return
        self.held = {}

    def _arrive(self, gradient: Tensor) -> None:
        if self.watched is not None and self.watched.changes() == self.arrived:
            self.arrived += 1
        else:
            self.watch()

    def stepped(self, ids: set[int]) -> None:
        """Parameters of these ids were updated."""
        before = len(self.held)
        self.held = {key: held for key, held in self.held.items() if key not in ids}
        if len(self.held) != before:
            self.watch()

    def pending(self) -> set[int]:
        """ids of the parameters whose gradients hold the penalty; raises ValueError where it has been changed."""
        while self.watched is not None:
            changes = self.watched.changes()
            if changes == self.arrived:
                return {key for key, held in self.held.items() if held.changes() in range(self.arrived + 1)}
            if changes is not None and self.arrived:
                self.stepped(set(self.held))
                raise ValueError(
                    "before_step() came twice for one optimizer.step(), with gradients scaled or clipped in between:"
                    " call it only before a step that is taken (if accelerator.sync_gradients: ...), after clipping"
                )
            self.watch()
        return set()


OPEN: "weakref.WeakSet[Addition]" = weakref.WeakSet()


@cache
def watch_steps() -> None:
    """Have every optimizer of torch's close what it has stepped on."""

    def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not torch.compiler.is_compiling():
            ids = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            for addition in list(OPEN):
                addition.stepped(ids)

    register_optimizer_step_post_hook(after)


class Once:
    """The additions of a regularizer that are not stepped on yet."""

    def __init__(self) -> None:
        self.additions: list[Addition] = []

    def left(self) -> set[int]:
        """ids of the parameters whose gradients hold the penalty already."""
        left = set().union(*(addition.pending() for addition in self.additions))
        self.additions = [addition for addition in self.additions if addition.watched is not None]
        return left

    def added(self, parameters: list[nn.Parameter]) -> None:
        if not torch.compiler.is_compiling():
            watch_steps()
            addition = Addition(parameters)
            self.additions.append(addition)
            OPEN.add(addition)

    def __getstate__(self) -> dict[str, Any]:
        return {"additions": []}  # a copy has gradients of its own, or none
