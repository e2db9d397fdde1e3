"""The protocol: a regularizer is a constructor and three moments of a training step.

loss(x, logits)   added to the task loss
before_step()     after every backward(), before optimizer.step(): penalties add to .grad
after_step()      after optimizer.step(): projections move the weights back to their set
"""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

Layers = str | Callable[[str, nn.Module], bool]

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": CONV,
    "conv+linear": (*CONV, nn.Linear),
    "all": (*CONV, nn.Linear, nn.Embedding),
    "spatial": CONV,
    "first": CONV,
}


def select_layers(model: nn.Module, layers: Layers) -> dict[str, nn.Module]:
    """The modules of `model` whose weight holds one filter a row, by name, each weight once.

    layers: "conv", "conv+linear", "all" (embeddings too), "spatial" (convolutions larger than 1x1), "first" (the first
    convolution), or a function of (name, module). Raises ValueError for another word, for what is no module, for a
    module without such a weight, and where nothing matches.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(layers, str) and layers not in KINDS:
        raise ValueError(f"layers must be {', '.join(KINDS)} or a function of (name, module), got {layers!r}")
    chosen: dict[str, nn.Module] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if not (isinstance(module, KINDS[layers]) if isinstance(layers, str) else layers(name, module)):
            continue
        if layers == "spatial" and max(module.kernel_size) == 1:
            continue
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim < 2 or getattr(module, "transposed", False):
            raise ValueError(f"layer {name!r} ({type(module).__name__}) has no weight with one filter a row")
        if is_parametrized(module, "weight"):
            weight = next(module.parametrizations.weight.parameters())  # .weight is another tensor at each access
        if id(weight) not in seen:  # tied weights count once
            seen.add(id(weight))
            chosen[name] = module
        if layers == "first":
            break
    if not chosen:
        raise ValueError(f"no layer of {type(model).__name__} matches layers={layers!r}")
    return chosen


def plain_weights(model: nn.Module, layers: Layers) -> list[nn.Parameter]:
    """The weights of the selected layers; ValueError for a reparametrized one, which has no gradient of its own."""
    chosen = select_layers(model, layers)
    refuse_reparametrized(chosen)
    return [module.weight for module in chosen.values()]


def refuse_reparametrized(modules: dict[str, nn.Module]) -> None:
    for name, module in modules.items():
        if module._parameters.get("weight") is None:
            raise ValueError(
                f"the weight of layer {name!r} is reparametrized: penalties and projections need a plain one"
            )


class Regularizer:
    """No regularization, and the base of every method: all three moments do nothing.

    model: the raw module, on its device; build the regularizer before the optimizer (a method may add
    parameters) and before torch.compile. lam: regularization factor, at least 0.
    """

    lam: float = 0.0
    needs_input_grad = False  # whether loss() differentiates with respect to the input
    capturable = True  # whether a CUDA graph can replay the step: nothing is read on the host, no state is a new tensor

    def __init__(self, model: nn.Module, *, lam: float = 0.0) -> None:
        if not lam >= 0:
            raise ValueError(f"lam must be at least 0, got {lam}")
        if lam == math.inf:
            raise ValueError("lam must be finite, got inf")
        self.lam = float(lam)

    def loss(self, x: Tensor, logits: Tensor) -> Tensor | float:
        """What the method adds to the task loss of a (micro-)batch; 0.0 for all but the Jacobian penalty."""
        return 0.0

    def before_step(self) -> None:
        """Change the gradients; under GradScaler call scaler.unscale_(optimizer) first."""

    def after_step(self) -> None:
        """Change the weights."""

    def after_epoch(self) -> None:
        """Between epochs, after testing; only PBWN(every="epoch") uses it."""

    def value(self) -> Tensor | float:
        """lam times the penalty as it stands, differentiable: the readable twin of before_step, and for logs."""
        return 0.0

    def fold(self) -> None:
        """Bake a reparametrization into plain weights."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold beside the model's own state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what state_dict gave."""

    def hook(self, optimizer: Optimizer) -> "Hook":
        """Run before_step and after_step inside optimizer.step(), for a training loop you do not own.

        Works with optimizer.step(closure) (PyTorch Lightning) and under GradScaler, which unscales first and skips the
        step, and so the hook, on inf; a fused optimizer skips by itself, after the hook. What a method keeps beside the
        model (state_dict()) is for the caller's checkpoint, and after_epoch() for its loop. Returns a handle whose
        remove() undoes it. Raises ValueError for a method that needs the batch (the Jacobian penalty).
        """
        if self.needs_input_grad:
            raise ValueError(
                "JacobianPenalty cannot be hooked: it needs the batch; add reg.loss(x, logits) to the loss"
            )
        return Hook(self, optimizer)


class Hook:
    """The two step moments of a regularizer inside optimizer.step()."""

    def __init__(self, regularizer: Regularizer, optimizer: Optimizer) -> None:
        self.regularizer = regularizer
        self.handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _before(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        unscale(optimizer)
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None:
            self.regularizer.before_step()
            return None

        def closure_then_penalty():  # the gradients exist only once the closure has run
            loss = closure()
            self.regularizer.before_step()
            return loss

        return args[:1], {**kwargs, "closure": closure_then_penalty}

    def _after(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        self.regularizer.after_step()


def unscale(optimizer: Optimizer) -> None:
    """Take GradScaler's scale off the gradients where it leaves that to the optimizer's own kernel (fused=True)."""
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.div_(scale)
    optimizer.grad_scale = None


class Chain(Regularizer):
    """Several regularizers in one, in the order given; lam is that of the first."""

    def __init__(self, *regularizers: Regularizer) -> None:
        if not regularizers:
            raise ValueError("Chain needs at least one regularizer, got none")
        self.regularizers = regularizers

    @property
    def needs_input_grad(self) -> bool:
        return any(regularizer.needs_input_grad for regularizer in self.regularizers)

    @property
    def capturable(self) -> bool:
        return all(regularizer.capturable for regularizer in self.regularizers)

    @property
    def lam(self) -> float:
        return self.regularizers[0].lam

    @lam.setter
    def lam(self, lam: float) -> None:
        self.regularizers[0].lam = lam

    def loss(self, x: Tensor, logits: Tensor) -> Tensor | float:
        return sum(regularizer.loss(x, logits) for regularizer in self.regularizers)

    def before_step(self) -> None:
        for regularizer in self.regularizers:
            regularizer.before_step()

    def after_step(self) -> None:
        for regularizer in self.regularizers:
            regularizer.after_step()

    def after_epoch(self) -> None:
        for regularizer in self.regularizers:
            regularizer.after_epoch()

    def value(self) -> Tensor | float:
        return sum(regularizer.value() for regularizer in self.regularizers)

    def fold(self) -> None:
        for regularizer in self.regularizers:
            regularizer.fold()

    def state_dict(self) -> dict[str, Any]:
        return {str(i): regularizer.state_dict() for i, regularizer in enumerate(self.regularizers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for i, regularizer in enumerate(self.regularizers):
            regularizer.load_state_dict(state[str(i)])
