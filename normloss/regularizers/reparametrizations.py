"""Reparametrizations: the weight that a layer applies is a function of the one that is trained.

Registered with torch.nn.utils.parametrize on the filter matrix W (n, p); build them before the optimizer, for they
may add parameters. A parametrized module cannot be pickled whole: save its state dict, or fold() it first.
"""

import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from torch.optim import Optimizer

from normloss import functional
from normloss.regularizers.base import Regularizer
from normloss.regularizers.coverage import Coverage
from normloss.regularizers.kinds import Weight
from normloss.regularizers.selection import Layers


class Reparametrization(Regularizer, ABC):
    """W = f(V, ...) for the weight of each selected layer; frozen weights are not changed.

    Build it before the optimizer. Raises ValueError, before anything is changed, for a layer that is reparametrized
    already or tied to another. The hook and the steps raise it for an optimizer that was made before, as what a
    reparametrization adds would silently not train, and where a layer was replaced or unfrozen since: what was
    registered cannot follow.
    """

    coverage: Coverage

    def __init__(self, model: nn.Module, *, layers: Layers) -> None:
        super().__init__(model)
        self.coverage = Coverage(model, layers, refuse=self.refuse, reparametrized=True)
        weights = self.coverage.weights()
        holders = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
        for weight in weights:
            if weight.parameter is None:
                raise ValueError(f"{self.kind}: the weight of layer {weight.name!r} is reparametrized already")
            if holders[id(weight.parameter)] > 1:
                raise ValueError(f"{self.kind}: the weight of layer {weight.name!r} is tied to another's")
            if weight.parameter.is_meta:
                raise ValueError(
                    f"{self.kind}: the weight of layer {weight.name!r} is on the meta device: give it values first"
                )
            self.check(weight)
        for weight in weights:
            self.register(weight.module)
        self.registered = [weight.layer for weight in self.coverage.weights()]
        now = {id(parameter) for parameter in model.parameters()}  # torch cannot swap one that is referred to weakly
        self.replaced = {w.layer: weakref.ref(w.tensor) for w in weights if id(w.tensor) not in now}
        frozen = [weight for weight, why in self.coverage.survey()[1] if why == FROZEN]
        self.frozen = [(weight.name, weight.parameter) for weight in frozen]
        self.folded = False

    @property
    def kind(self) -> str:
        return type(self).__name__

    def refuse(self, weight: Weight) -> str | None:
        """Return why a weight that `layers` selects is not covered, None where it is."""
        if weight.attribute != "weight" or weight.groups:
            return f"{self.kind} serves weights that hold one filter per row and are called weight"
        return None if weight.tensor.requires_grad else FROZEN

    def check(self, weight: Weight) -> None:
        """Raise ValueError for a weight that the method cannot serve."""

    @abstractmethod
    def register(self, module: nn.Module) -> None:
        """Reparametrize the weight of one layer."""

    def check_optimizer(self, optimizer: Optimizer) -> None:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for weight in self.coverage.weights():
            if weight.parameter is not None:  # folded
                continue
            parameters: Any = [*weight.module.parametrizations.parameters()]  # type: ignore[union-attr]
            missing = [parameter for parameter in parameters if id(parameter) not in held]
            old = self.replaced[weight.layer]() if weight.layer in self.replaced else None
            if missing and (id(old) in held or len(missing) < len(parameters)):
                raise ValueError(
                    f"{self.kind}: build it before the optimizer; this {type(optimizer).__name__} holds the weight of"
                    f" layer {weight.layer!r} as it was, and would not train what replaced it"
                )

    def before_step(self, optimizer: Optimizer | None = None) -> None:
        if self.folded:
            return
        now = {weight.layer: weight for weight in self.coverage.weights()}
        for layer in self.registered:
            if layer not in now or now[layer].parameter is not None:
                raise ValueError(
                    f"{self.kind}: the weight of layer {layer!r} is not the one that was reparametrized: build"
                    f" {self.kind} again, before the optimizer"
                )
        for name, parameter in self.frozen:
            if parameter is not None and parameter.requires_grad:
                raise ValueError(
                    f"{self.kind}: layer {name!r} was frozen when this was built: unfreeze it before, or leave it out"
                )
        self.after_step(optimizer)

    def after_step(self, optimizer: Optimizer | None = None) -> None:
        if optimizer is not None:
            self.check_optimizer(optimizer)

    def fold(self, model: nn.Module | None = None) -> None:
        """Leave plain weights that compute the same; an optimizer that trained them continues with them.

        model: a copy made since (deepcopy, AveragedModel); without it the regularizer's own, and no copy is touched.
        """
        target = self.coverage.model if model is None else model
        if model is None:
            self.folded, self.replaced = True, {}
        for module in target.modules():
            if is_ours(module):
                bake(module)


FROZEN = "frozen"


def is_ours(module: nn.Module) -> bool:
    if not parametrize.is_parametrized(module, "weight"):
        return False
    first = module.parametrizations["weight"][0]  # type: ignore[index]
    return isinstance(first, Orthogonalized) or reads_older_weight_norm(module) is not None


def bake(module: nn.Module) -> None:
    """torch's remove_parametrizations(leave_parametrized=True), but that copies of the module keep theirs: they share
    the class that torch takes the property from. The parameter that was trained in the weight's place stays."""
    parametrizations: Any = module.parametrizations
    trained = parametrizations["weight"]
    key = reads_older_weight_norm(module)
    parameter = trained.original if trained.is_tensor else trained.original1
    with torch.no_grad():
        parameter.copy_(module.weight)
    if len(parametrizations) > 1:
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        return
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    module.register_parameter("weight", parameter)
    if key is not None:
        del module._load_state_dict_pre_hooks[key]


class WeightNorm(Reparametrization):
    """Weight normalization [20]: w = g v / |v| for each filter, g and v trained (torch's parametrization, dim=0).

    scale: what g starts at; None: the filter's norm, so that the function stays; [19]'s comparison, whose numbers the
    paper quotes, starts at 1. Behind a batch norm g is redundant with its scale. No data-dependent initialisation.
    layers: [19] normalizes all 3x3 convolutions.
    """

    def __init__(self, model: nn.Module, *, layers: Layers = "conv", scale: float | None = None) -> None:
        self.scale = scale
        super().__init__(model, layers=layers)

    def check(self, weight: Weight) -> None:
        norms = functional.filter_norms(weight.matrix(weight.tensor.detach()))
        if zero := (norms <= functional.TINY).nonzero().flatten().tolist():
            raise ValueError(
                f"WeightNorm: filter {zero[0]} of layer {weight.name!r} is zero and has no direction: initialize it, or"
                " leave the layer out with layers=..."
            )

    def register(self, module: nn.Module) -> None:
        before = set(module._load_state_dict_pre_hooks)
        weight_norm(module, dim=0)
        for key in set(module._load_state_dict_pre_hooks) - before:
            del module._load_state_dict_pre_hooks[key]  # a local function of torch's, it keeps a model from pickling
        module.register_load_state_dict_pre_hook(from_older_weight_norm)
        if self.scale is not None:
            nn.init.constant_(module.get_parameter("parametrizations.weight.original0"), self.scale)


def from_older_weight_norm(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Read g and v as torch.nn.utils.weight_norm names them."""
    for name, ours in (("weight_g", "original0"), ("weight_v", "original1")):
        if prefix + name in state:
            state[f"{prefix}parametrizations.weight.{ours}"] = state.pop(prefix + name)


def reads_older_weight_norm(module: nn.Module) -> int | None:
    """Return the key of from_older_weight_norm among a module's hooks: it marks what WeightNorm registered."""
    hooks = module._load_state_dict_pre_hooks.items()
    return next((key for key, hook in hooks if getattr(hook, "hook", None) is from_older_weight_norm), None)


class Orthogonalized(nn.Module):
    """V (n, ...) -> g f(V) with f on the filter matrix, and a scale g for each filter."""

    def __init__(self, function: Callable[[Tensor], Tensor], weight: Tensor, scale: float, learnable: bool) -> None:
        super().__init__()
        self.function = function
        g = torch.full((len(weight), 1), scale, dtype=weight.dtype, device=weight.device)
        if learnable:
            self.g = nn.Parameter(g)
        else:
            self.register_buffer("g", g)

    def forward(self, V: Tensor) -> Tensor:
        with torch.autocast(V.device.type, enabled=False):  # Gram matrices in half precision lose orthogonality
            return (self.g * self.function(V.flatten(1))).view_as(V)


class Orthogonalization(Reparametrization):
    """W = g f(V) for the weight of each selected layer, f on its filter matrix."""

    def __init__(
        self, model: nn.Module, layers: Layers, function: Callable[[Tensor], Tensor], scale: float, learnable: bool
    ) -> None:
        self.function, self.scale, self.learnable = function, scale, learnable
        super().__init__(model, layers=layers)

    def check(self, weight: Weight) -> None:
        if weight.tensor[0].numel() < 2:
            shape = tuple(weight.tensor.shape)
            raise ValueError(
                f"a filter of one input cannot be orthogonalized: centred it is 0, got {shape} of layer {weight.name!r}"
            )

    def register(self, module: nn.Module) -> None:
        orthogonalized = Orthogonalized(self.function, module.get_parameter("weight"), self.scale, self.learnable)
        parametrize.register_parametrization(module, "weight", orthogonalized)


class ONI(Orthogonalization):
    """Orthogonalization by Newton's iteration [15]: W = g oni(Z, T), Z trained.

    T: iterations, "controllable": few leave the singular values between 0 and 1. scale, learnable: of g.
    Authors: CIFAR ResNet110 T=5, scale 0.8, learnable, all convolutions, and a network *without batch norm*; ImageNet
    ResNet-50 T=2, scale sqrt(2), all but shortcuts and head.
    """

    def __init__(
        self, model: nn.Module, *, layers: Layers = "conv", T: int = 5, scale: float = 1.0, learnable: bool = True
    ) -> None:
        if not isinstance(T, int) or T < 1:
            raise ValueError(f"T must be at least 1, got {T}")
        super().__init__(model, layers, partial(functional.oni, T=T), scale, learnable)


class OLM(Orthogonalization):
    """Orthogonal linear module [21]: W = olm(Z), orthonormal within each group of filters, Z trained.

    Authors (wide-resnet): all 3x3 convolutions, groups of 64, no scale; OLM-L1 is the first convolution only (not an L1
    norm): layers="first". Their Lua code caps a group at the length of a filter; here a longer group keeps its size and
    the directions that it has too many are dropped.
    """

    capturable = False  # the host checks an eigendecomposition

    def __init__(
        self, model: nn.Module, *, layers: Layers = "spatial", group_size: int = 64, scale: float = 1.0
    ) -> None:
        if not isinstance(group_size, int) or group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {group_size}")
        super().__init__(model, layers, partial(functional.olm, group_size=group_size), scale, learnable=False)
