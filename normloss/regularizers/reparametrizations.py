"""Reparametrizations: the weight that a layer applies is a function of the one that is trained.

Registered with torch.nn.utils.parametrize on the filter matrix W (n, p); build them before the optimizer, for they
may add parameters. A parametrized module cannot be pickled whole: save its state dict, or fold() it first.
"""

import gc
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from torch.optim import Optimizer

from normloss import functional
from normloss.regularizers.base import Layers, Regularizer, select_layers


class Reparametrization(Regularizer, ABC):
    """W = f(V, ...) for the weight of each selected layer.

    Raises ValueError for a layer that is reparametrized already or tied to another, and where an optimizer holds its
    weight already: what the reparametrization adds would silently not train.
    """

    def __init__(self, model: nn.Module, *, layers: Layers) -> None:
        super().__init__(model)
        self.modules = select_layers(model, layers)
        holders = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
        held = parameters_of_optimizers()
        for name, module in self.modules.items():
            if not isinstance(module.weight, nn.Parameter):
                raise ValueError(f"{type(self).__name__}: the weight of layer {name!r} is reparametrized already")
            if holders[id(module.weight)] > 1:
                raise ValueError(f"{type(self).__name__}: the weight of layer {name!r} is tied to another's")
            if id(module.weight) in held:
                raise ValueError(
                    f"{type(self).__name__}: build it before the optimizer; {held[id(module.weight)]} holds the weight"
                    f" of layer {name!r} already and would not train what replaces it"
                )
        for module in self.modules.values():
            self.register(module)

    @abstractmethod
    def register(self, module: nn.Module) -> None:
        """Reparametrize the weight of one layer."""

    def fold(self) -> None:
        """Leave plain weights that compute the same."""
        for module in self.modules.values():
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def parameters_of_optimizers() -> dict[int, str]:
    """id of each parameter that a live optimizer holds -> the optimizer's class."""
    optimizers = [thing for thing in gc.get_objects() if issubclass(type(thing), Optimizer)]
    return {
        id(parameter): type(optimizer).__name__
        for optimizer in optimizers
        for group in getattr(optimizer, "param_groups", [])
        for parameter in group["params"]
    }


class WeightNorm(Reparametrization):
    """Weight normalization [20]: w = g v / |v| for each filter, g and v trained (torch's parametrization, dim=0).

    scale: what g starts at; None: the filter's norm, so that the function stays; [19]'s comparison, whose numbers the
    paper quotes, starts at 1. Behind a batch norm g is redundant with its scale. No data-dependent initialisation.
    layers: [19] normalizes all 3x3 convolutions.
    """

    def __init__(self, model: nn.Module, *, layers: Layers = "conv", scale: float | None = None) -> None:
        self.scale = scale
        super().__init__(model, layers=layers)

    def register(self, module: nn.Module) -> None:
        hooks = set(module._load_state_dict_pre_hooks)
        weight_norm(module, dim=0)
        for key in set(module._load_state_dict_pre_hooks) - hooks:
            # reads state dicts of the deprecated weight_norm; a local function, it keeps a folded model from pickling
            del module._load_state_dict_pre_hooks[key]
        if self.scale is not None:
            nn.init.constant_(module.parametrizations.weight.original0, self.scale)


class Orthogonalized(nn.Module):
    """V (n, ...) -> g f(V) with f on the filter matrix, and a scale g for each filter."""

    def __init__(self, function: Callable[[Tensor], Tensor], weight: Tensor, scale: float, learnable: bool) -> None:
        super().__init__()
        if weight[0].numel() < 2:
            shape = tuple(weight.shape)
            raise ValueError(f"a filter of one input cannot be orthogonalized: centred it is 0, got a weight {shape}")
        self.function = function
        g = torch.full((len(weight), 1), scale, dtype=weight.dtype, device=weight.device)
        if learnable:
            self.g = nn.Parameter(g)
        else:
            self.register_buffer("g", g)

    def forward(self, V: Tensor) -> Tensor:
        with torch.autocast(V.device.type, enabled=False):  # Gram matrices in half precision lose orthogonality
            return (self.g * self.function(V.flatten(1))).view_as(V)


class ONI(Reparametrization):
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
        self.T, self.scale, self.learnable = T, scale, learnable
        super().__init__(model, layers=layers)

    def register(self, module: nn.Module) -> None:
        function = partial(functional.oni, T=self.T)
        orthogonalized = Orthogonalized(function, module.weight, self.scale, self.learnable)
        parametrize.register_parametrization(module, "weight", orthogonalized)


class OLM(Reparametrization):
    """Orthogonal linear module [21]: W = olm(Z), orthonormal within each group of filters, Z trained.

    Authors (wide-resnet): all 3x3 convolutions, groups of 64, no scale; OLM-L1 is the first convolution only (not an L1
    norm): layers="first".
    """

    capturable = False  # the host checks an eigendecomposition

    def __init__(
        self, model: nn.Module, *, layers: Layers = "spatial", group_size: int = 64, scale: float = 1.0
    ) -> None:
        if not isinstance(group_size, int) or group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {group_size}")
        self.group_size, self.scale = group_size, scale
        super().__init__(model, layers=layers)

    def register(self, module: nn.Module) -> None:
        function = partial(functional.olm, group_size=self.group_size)
        orthogonalized = Orthogonalized(function, module.weight, self.scale, learnable=False)
        parametrize.register_parametrization(module, "weight", orthogonalized)
