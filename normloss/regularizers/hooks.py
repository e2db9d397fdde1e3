"""Calls before_step and after_step of a regularizer inside optimizer.step(), whoever calls that."""

import weakref
from collections.abc import Callable, Iterator
from itertools import chain, product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

if TYPE_CHECKING:
    from normloss.regularizers.base import Regularizer
    from normloss.regularizers.kinds import Weight


class Hook:
    """A regularizer on one optimizer, or on those inside a wrapper, until remove()."""

    def __init__(self, regularizer: "Regularizer", optimizer: Optimizer) -> None:
        if regularizer.needs_input_grad:
            raise ValueError("JacobianPenalty has no hook: it needs the batch; add reg.loss(x, logits) to the loss")
        self.regularizer = regularizer
        self.members = regularizer.members()
        inner = stepping(optimizer)
        for each in inner:
            self._check(each)
        self.handles = [each.register_step_pre_hook(self._before) for each in inner]
        self.handles += [each.register_step_post_hook(self._after) for each in inner]
        for member in self.members:
            member.hooks = weakref.WeakSet([*member.hooks, self])  # an optimizer's end is its hooks'
        self.optimizers = [weakref.ref(each) for each in inner]
        self.announced = self.acting = False

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        for member in self.members:
            member.hooks.discard(self)

    def _check(self, optimizer: Optimizer) -> None:
        name = type(optimizer).__name__
        owners = [getattr(hook, "__self__", None) for hook in optimizer._optimizer_step_pre_hooks.values()]
        there = [owner.members for owner in owners if isinstance(owner, Hook)]
        for mine, theirs in product(self.members, chain(*there)):
            ids = set(map(id, theirs.weights))
            shared = [weight for weight in held(optimizer.param_groups, mine.trained()) if id(weight.parameter) in ids]
            if mine is theirs or (shared and type(mine) is type(theirs)):
                weights = f" for {listed(shared)}" if shared else ""
                raise ValueError(f"{type(mine).__name__} is hooked to this {name} already{weights}: once is enough")
        covered = [weight for member in self.members for weight in member.trained()]
        if covered and not held(optimizer.param_groups, covered):
            raise ValueError(
                f"this {name} holds none of the weights that {type(self.members[0]).__name__} covers"
                f" ({listed(covered)}): hook the optimizer that does"
            )
        for member in self.members:
            member.check_optimizer(optimizer)

    def refuse_call(self, optimizer: Optimizer | None) -> None:
        """Raise ValueError where a loop calls before_step or after_step too: both would act twice."""
        if self.acting:
            return
        alive = [each for ref in self.optimizers if (each := ref()) is not None]
        called = alive if optimizer is None else list(innermost(optimizer))
        if any(mine is theirs for mine, theirs in product(alive, called)):
            raise ValueError(
                f"{type(self.members[0]).__name__} is hooked: optimizer.step() calls before_step() and after_step();"
                " leave these calls out, or call remove() of what hook() returned"
            )

    def _act(self, method: Callable[[Optimizer], None], optimizer: Optimizer) -> None:
        self.acting = True
        try:
            method(optimizer)
        finally:
            self.acting = False

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        unscale(optimizer)
        if not self.announced:
            self.announced = True
            for member in self.members:
                self._warn_of_unserved_weights(member)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._act(self.regularizer.before_step, optimizer)
            return None

        def closure_then_penalty() -> Any:  # the gradients exist only once the closure has run
            loss = closure()
            self._act(self.regularizer.before_step, optimizer)
            if isinstance(optimizer, LBFGS):  # it compares losses along a line, which the gradients must fit
                with torch.no_grad():
                    loss = loss + sum(member.value() for member in self.members)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": closure_then_penalty}
        return (args[0], closure_then_penalty, *args[2:]), kwargs

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._act(self.regularizer.after_step, optimizer)

    def _warn_of_unserved_weights(self, member: "Regularizer") -> None:
        optimizers = [optimizer for hook in member.hooks for ref in hook.optimizers if (optimizer := ref())]
        served = {id(weight.parameter) for each in optimizers for weight in held(each.param_groups, member.trained())}
        if left := [weight for weight in member.trained() if id(weight.parameter) not in served]:
            member.warn(
                "unserved",
                f"{type(member).__name__} covers weights that no hooked optimizer holds: hook theirs, or call"
                f" before_step(optimizer) for them: {listed(left)}",
            )


def innermost(optimizer: Any) -> Iterator[Any]:
    """Yield the optimizers whose step() updates the weights: those inside, if an optimizer or wrapper has any."""
    inner = [
        each
        for name, value in getattr(optimizer, "__dict__", {}).items()
        for each in (value if isinstance(value, list) else [value])
        if isinstance(each, Optimizer) or (name.endswith("optimizer") and hasattr(each, "step"))
    ]
    if not inner:
        yield optimizer
    for each in inner:
        yield from innermost(each)


def stepping(optimizer: Any) -> list[Optimizer]:
    """Return the innermost optimizers; raises ValueError for what is none, or one whose step cannot be hooked."""
    found = list(innermost(optimizer))
    for each in found:
        name = type(each).__name__
        if not isinstance(each, Optimizer):
            raise ValueError(f"hook needs a torch.optim.Optimizer, got {name}")
        if hasattr(each, "second_step"):
            raise ValueError(f"{name} steps in two calls, which no hook sees: call reg.before_step() before the second")
    return found


def held(groups: list[dict[str, Any]], weights: "list[Weight]") -> "list[Weight]":
    """Return the weights that these parameter groups of an optimizer hold."""
    ids = {id(parameter) for group in groups for parameter in group["params"]}
    return [weight for weight in weights if id(weight.parameter) in ids]


def listed(weights: "list[Weight]") -> str:
    names = [weight.name for weight in weights]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def unscale(optimizer: Optimizer) -> None:
    """Divide the gradients by GradScaler's scale where it leaves that to the optimizer's own kernel (fused=True)."""
    scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.div_(scale)
    optimizer.grad_scale = None  # type: ignore[attr-defined]


# weight decay in addition to norm loss ------------------------------------------------------------------------


def warn_of_weight_decay(regularizer: "Regularizer", optimizer: Optimizer) -> None:
    """Warn where an optimizer decays weights that a norm loss pulls to norm one."""
    for group in optimizer.param_groups:
        decay = group.get("weight_decay", 0)
        if decay and (both := held([group], regularizer.trained())):
            regularizer.warn(
                "weight decay",
                f"{type(regularizer).__name__} and {type(optimizer).__name__}(weight_decay={decay:g}) both act on"
                f" {listed(both)}: norm loss replaces weight decay, give the optimizer weight_decay=0 for them",
            )
            return


class Lookout:
    """A hook on every optimizer that warns of weight decay in the first one that steps on a weight of a regularizer.

    It goes with the regularizer, or by remove() once it is done: torch is going through its hooks then.
    """

    def __init__(self, regularizer: "Regularizer") -> None:
        self.regularizer = weakref.ref(regularizer)
        self.done = False
        handle = register_optimizer_step_pre_hook(self._before)
        self.remove = weakref.finalize(regularizer, handle.remove)

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        regularizer = self.regularizer()
        if not self.done and regularizer is not None and held(optimizer.param_groups, regularizer.trained()):
            self.done = True
            warn_of_weight_decay(regularizer, optimizer)
