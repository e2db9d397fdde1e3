"""The weights of a model and how each becomes rows of W (n, p).

A filter is what produces one output: n filters of p inputs each. The kind of a module says which axis counts outputs.
For a module of no known kind axis 0 is a guess, and its weight is covered only where it is asked for by name.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


class Kind(NamedTuple):
    """A kind of modules whose weights hold filters."""

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
CONV1D_OF_TRANSFORMERS = Kind("linear", (), columns=True)  # y = x W; known by its name, the library imports torch only
SCALES = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)  # an axis more makes no filters of them


def kind_of(module: nn.Module) -> Kind | None:
    """Return the kind of a module, None for one whose weights nothing is known of."""
    for kind in KINDS:
        if isinstance(module, kind.types):
            return kind
    is_conv1d = hasattr(module, "nf") and any(base.__name__ == "Conv1D" for base in type(module).__mro__)
    return CONV1D_OF_TRANSFORMERS if is_conv1d else None


@dataclass(frozen=True, eq=False)
class Weight:
    """A weight as it is at one moment: its place in the model, the parameter there, and the axes that count filters."""

    layer: str
    module: nn.Module
    attribute: str
    parameter: nn.Parameter | None  # None: reparametrized, the weight is no parameter
    kind: Kind | None
    axes: tuple[int, ...] = (0,)  # that count filters; the others are a filter's inputs
    asked: bool = False  # for by its very name
    guessed: bool = False  # whether axis 0 counts filters is unknown

    @property
    def path(self) -> str:
        return f"{self.layer}.{self.attribute}" if self.layer else self.attribute

    @property
    def name(self) -> str:
        """The weight's name in tables: its layer, with the parameter's own name where that is not "weight"."""
        return self.layer if self.attribute == "weight" and self.layer else self.path

    @property
    def tensor(self) -> nn.Parameter:
        assert self.parameter is not None
        return self.parameter

    @property
    def groups(self) -> int:
        """The number of slices of axis 0 within each of which axis 1 counts filters; 0 where `axes` count them."""
        return int(getattr(self.module, "groups", 1)) if self.kind and self.kind.columns else 0

    @property
    def unknown(self) -> bool:
        """Whether this is a parameter of two axes or more, none of which is known to count filters."""
        known = self.kind or self.parameter is None or isinstance(self.module, SCALES)
        return not known and self.tensor.ndim > 1

    def has_filters(self, asked: Any = None) -> bool:
        """Return whether the weight is of a known kind, or an unknown one that is called weight or `asked`."""
        return self.kind is not None or (self.unknown and (self.attribute == "weight" or self.path == asked))

    def filters(self, tensor: Tensor) -> list[Tensor]:
        """Return views of a tensor of this weight's shape, in each of which axis 0 counts filters; a vector is one.

        Raises ValueError where the weight has become a flat shard of FSDP1, or complex.
        """
        if self.kind and tensor.ndim < 2:
            raise ValueError(f"the weight of layer {self.name!r} {FLAT}")
        if tensor.is_complex():
            raise ValueError(f"the weight of layer {self.name!r} cannot be covered: {unserved(tensor)}")
        if tensor.ndim < 2:
            return [tensor.reshape(1, -1)]
        axes = self.axes
        if self.kind and self.kind.columns:
            tensor, axes = tensor.unflatten(0, (self.groups, -1)), (0, 2)
        if axes == (0,):
            return [tensor]
        parts = [tensor.movedim(axes, tuple(range(len(axes))))]
        for _ in axes[1:]:
            parts = [piece for part in parts for piece in part.unbind(0)]
        return parts

    def matrix(self, tensor: Tensor) -> Tensor:
        """Return W (n, p) of a tensor of this weight's shape, differentiable."""
        parts = [part.flatten(1) for part in self.filters(tensor)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def rows_of(self, W: Tensor, tensor: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, for each of a tensor's filters(), that view and what of W (n, p) belongs there."""
        parts = self.filters(tensor)
        pieces = W.split([len(part) for part in parts])
        return ((part, rows.reshape(part.shape)) for part, rows in zip(parts, pieces, strict=True))


FLAT = "is a flat shard of FSDP1, which cuts filters: use FSDP2, torch.distributed.fsdp.fully_shard"
EMPTY = "empty"


def unserved(tensor: Any) -> str | None:
    """Return why no method can train the filters of a weight like this, None where one can."""
    if is_traceable_wrapper_subclass(tensor) and not hasattr(tensor, "to_local"):
        return f"quantized ({type(tensor).__name__})"
    if not tensor.is_floating_point() or tensor.dtype.itemsize == 1:  # float8
        return f"{tensor.dtype} has no filter norms to train"
    return None if tensor.numel() else EMPTY


def is_flat(weight: Weight, model: nn.Module) -> bool:
    """Return whether FSDP1 holds the weight in a flat parameter, whole or, with use_orig_params=True, in pieces."""
    if weight.parameter is None:
        return any(name.endswith("_flat_param") for name, _ in model.named_parameters())
    return weight.attribute == "_flat_param" or (weight.kind is not None and weight.parameter.ndim < 2)


def weights_of(model: nn.Module) -> list[Weight]:
    """Return every parameter, and every weight of a known kind that is reparametrized, in the model's order.

    Raises ValueError for modules of torch.jit and torch.export, which do not say which axes count filters, and for a
    lazy layer that has not run yet.
    """
    found = []
    for layer, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "range_constraints"):
            made_by = "torch.jit" if isinstance(module, torch.jit.ScriptModule) else "torch.export"
            raise ValueError(
                f"{layer or 'model'} ({type(module).__name__}) was made by {made_by}, which keeps no layers: build the"
                " regularizer on the module that it was made from"
            )
        kind = kind_of(module)
        for attribute, parameter in {**module._parameters, **dict.fromkeys(computed(module, kind))}.items():
            if isinstance(parameter, UninitializedParameter):
                raise ValueError(f"layer {layer!r} is lazy and has no weight yet: run the model once first")
            ours = kind is not None and re.fullmatch(kind.names, attribute)
            if parameter is not None or attribute not in module._parameters:
                found.append(Weight(layer, module, attribute, parameter, kind if ours else None, guessed=not ours))
    return found


def computed(module: nn.Module, kind: Kind | None) -> set[str]:
    """Return the weights of a module that are no parameters: parametrized, pruned, or set by the older weight_norm."""
    names: set[str] = set(module.parametrizations) if is_parametrized(module) else set()  # type: ignore[arg-type]
    return names | {
        name
        for name, value in vars(module).items()
        if kind and isinstance(value, Tensor) and re.fullmatch(kind.names, name)
    }
