"""The weights of a model and how each becomes rows of W (n, p).

A filter is what produces one output: n filters of p inputs each. Which axis counts the outputs, the kind of the module
says; what is of no kind here is covered only where it is asked for by name.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized


class Kind(NamedTuple):
    """Modules whose weights hold filters."""

    word: str  # what `layers` calls it
    types: tuple[type[nn.Module], ...]
    names: str = "weight"  # of the weights, a regular expression
    columns: bool = False  # axis 1 counts the outputs, not axis 0


KINDS = (
    Kind("conv", (nn.Conv1d, nn.Conv2d, nn.Conv3d)),
    Kind("conv", (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), columns=True),
    Kind("linear", (nn.Linear, nn.Bilinear)),
    Kind("linear", (nn.MultiheadAttention,), r"(in|[qkv])_proj_weight"),
    Kind("linear", (nn.RNNBase, nn.RNNCellBase), r"weight_(ih|hh|hr)(_l\d+(_reverse)?)?"),
    Kind("embedding", (nn.Embedding, nn.EmbeddingBag)),
)
CONV1D_OF_TRANSFORMERS = Kind(
    "linear", (), columns=True
)  # y = x W; told by its name, for the library imports torch only
SCALES = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)  # an axis more makes no filters of them


def kind_of(module: nn.Module) -> Kind | None:
    for kind in KINDS:
        if isinstance(module, kind.types):
            return kind
    is_conv1d = hasattr(module, "nf") and any(base.__name__ == "Conv1D" for base in type(module).__mro__)
    return CONV1D_OF_TRANSFORMERS if is_conv1d else None


@dataclass(frozen=True, eq=False)
class Weight:
    """A weight as it is at one moment: its place in the model, the parameter there, and its kind."""

    layer: str
    module: nn.Module
    attribute: str
    parameter: nn.Parameter | None  # None: reparametrized, the weight is no parameter
    kind: Kind | None

    @property
    def path(self) -> str:
        return f"{self.layer}.{self.attribute}" if self.layer else self.attribute

    @property
    def name(self) -> str:
        """What it is called in tables: its layer, with the parameter's own name where that is not "weight"."""
        return self.layer if self.attribute == "weight" and self.layer else self.path

    @property
    def tensor(self) -> nn.Parameter:
        assert self.parameter is not None
        return self.parameter

    @property
    def groups(self) -> int:
        """0: axis 0 counts the filters; else axis 1 does, within each of so many slices of axis 0."""
        return int(getattr(self.module, "groups", 1)) if self.kind and self.kind.columns else 0

    def has_filters(self, asked: str = "") -> bool:
        """Of a known kind, or a weight of two axes or more that nothing is known of: then axis 0 counts. asked: by this
        name a parameter may be called otherwise."""
        if self.kind:
            return True
        if self.parameter is None or isinstance(self.module, SCALES):
            return False
        return (self.attribute == "weight" or self.path == asked) and axes(self.parameter) > 1

    def filters(self, tensor: Tensor) -> list[Tensor]:
        """Views of a tensor of this weight's shape, in each of which axis 0 counts filters."""
        groups = self.groups
        if not groups:
            return [tensor]
        return [part.transpose(0, 1) for part in tensor.unflatten(0, (groups, -1)).unbind(0)]

    def matrix(self, tensor: Tensor) -> Tensor:
        """W (n, p) of a tensor of this weight's shape, differentiable; a vector is one row."""
        parts = [part.flatten(1) if part.ndim > 1 else part.unsqueeze(0) for part in self.filters(tensor)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def rows_of(self, W: Tensor, tensor: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(view of the tensor, what of W (n, p) belongs there) for each of its filters()."""
        parts = self.filters(tensor)
        if len(parts) == 1:
            return iter([(parts[0], W.view(parts[0].shape))])
        pieces = W.split([len(part) for part in parts])
        return ((part, rows.view(part.shape)) for part, rows in zip(parts, pieces, strict=True))


def axes(parameter: nn.Parameter) -> int:
    """Of a lazy layer's parameter none are known yet."""
    return 2 if isinstance(parameter, UninitializedParameter) else parameter.ndim


def weights_of(model: nn.Module) -> list[Weight]:
    """Every parameter of the model, and every weight of a known kind that is reparametrized, in the model's order."""
    found = []
    for layer, module in model.named_modules():
        kind = kind_of(module)
        for attribute, parameter in {**module._parameters, **dict.fromkeys(computed(module, kind))}.items():
            ours = kind is not None and re.fullmatch(kind.names, attribute)
            if parameter is not None or attribute not in module._parameters:
                found.append(Weight(layer, module, attribute, parameter, kind if ours else None))
    return found


def computed(module: nn.Module, kind: Kind | None) -> set[str]:
    """The weights of a module that are no parameters of it: parametrized, pruned, or set by the older weight_norm."""
    names: set[str] = set(module.parametrizations) if is_parametrized(module) else set()  # type: ignore[arg-type]
    return names | {
        name
        for name, value in vars(module).items()
        if kind and isinstance(value, Tensor) and re.fullmatch(kind.names, name)
    }
