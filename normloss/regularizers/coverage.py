"""What a method covers of a model: decided by the names of modules and parameters, looked up when it is used.

So what is put in place of a layer or Parameter is followed: load_state_dict(assign=True), pruning, a new head.
"""

from collections.abc import Callable
from itertools import chain
from operator import is_
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter

from normloss.regularizers.kinds import Weight, axes, weights_of
from normloss.regularizers.selection import Layers, chosen


class Coverage:
    """The weights of `model` that `layers` means, each once; layers: as in selection.chosen, None: every parameter.

    refuse: why a method leaves a weight alone, None where it does not. reparametrized: whether it may be.
    Raises ValueError for what is no module, for layers that match nothing, for a lazy layer that has not run yet, and
    for a reparametrized weight.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers | None,
        *,
        refuse: Callable[[Weight], str | None] | None = None,
        reparametrized: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self.model, self.layers, self.refuse, self.reparametrized = model, layers, refuse, reparametrized
        self._weights: list[Weight] = []
        self._parents: list[dict[str, nn.Module | None]] = []  # the children of each module that may have any, and
        self._children: list[nn.Module | None] = []  # all that these held
        self._places: list[dict[str, nn.Parameter | None]] = []  # where each weight is looked up, by
        self._attributes: list[str] = []  # this name, and
        self._parameters: list[nn.Parameter | None] = []  # what was there
        self.weights()

    def weights(self) -> list[Weight]:
        """Those covered now, frozen ones too, in the model's order."""
        if (
            not self._weights
            or [*chain.from_iterable(map(dict.values, self._parents))] != self._children
            or not all(map(is_, map(dict.get, self._places, self._attributes), self._parameters))
        ):
            self._look_up()
        return self._weights

    def _look_up(self) -> None:
        inside, _ = self.survey()
        if not inside:
            kind = type(self.model).__name__
            raise ValueError(f"no layer of {kind} matches layers={self.layers!r}{self._reasons()}")
        self._weights = inside
        self._parents = [m._modules for m in self.model.modules() if m._modules or isinstance(m, CONTAINERS)]
        self._children = [*chain.from_iterable(map(dict.values, self._parents))]
        self._places = [weight.module._parameters for weight in inside]
        self._attributes = [weight.attribute for weight in inside]
        self._parameters = [weight.parameter for weight in inside]

    def _reasons(self) -> str:
        reasons = [f"{weight.name}: {why}" for weight, why in self.survey()[1] if why != NOT_SELECTED]
        return f" ({'; '.join(reasons[:3])})" if reasons else ""

    def survey(self) -> tuple[list[Weight], list[tuple[Weight, str]]]:
        """The weights covered, and those of two axes or more that are not, with why."""
        everything = weights_of(self.model)
        if self.layers is None:
            selected = {k for k, weight in enumerate(everything) if weight.parameter is not None}
        else:
            selected = chosen(self.layers, everything, self.model)
        inside: dict[int, Weight] = {}
        outside: list[tuple[Weight, str]] = []
        for k, weight in enumerate(everything):
            parameter = weight.parameter
            if k not in selected:
                why = NOT_SELECTED if weight.kind else f"a parameter of {type(weight.module).__name__}"
                outside.append((weight, why))
            elif parameter is None:
                if not self.reparametrized:
                    raise ValueError(
                        f"the weight of layer {weight.name!r} is reparametrized: penalties and projections need a plain"
                        " one; leave it out with layers=..."
                    )
                inside[-1 - k] = weight
            elif isinstance(parameter, UninitializedParameter):
                raise ValueError(f"layer {weight.layer!r} is lazy and has no weight yet: run the model once first")
            elif not parameter.is_floating_point():
                outside.append((weight, f"{parameter.dtype} has no filter norms to train"))
            elif self.refuse is not None and (refused := self.refuse(weight)):
                outside.append((weight, refused))
            elif id(parameter) in inside:
                outside.append((weight, f"the same as {inside[id(parameter)].name}"))
            else:
                inside[id(parameter)] = weight
        covered = list(inside.values())
        tied = {key: weight.name for key, weight in inside.items()}
        listed = []
        for weight, why in outside:
            if weight.parameter is None or axes(weight.parameter) > 1:
                name = tied.get(id(weight.parameter))
                listed.append((weight, f"the same as {name}" if name else why))
        return covered, listed

    def table(self) -> str:
        """A line for each weight of two axes or more: what is covered, then what is not, and why."""
        inside, outside = self.survey()
        lines = [f"{'covered':40} {'filters':>8} {'length':>8}"]
        for weight in inside:
            if weight.parameter is None:
                lines.append(f"{weight.name:40} reparametrized")
            elif weight.parameter.ndim > 1:
                W = weight.matrix(weight.parameter.detach().to("meta"))
                frozen = "" if weight.parameter.requires_grad else "  left alone: frozen"
                lines.append(f"{weight.name:40} {len(W):8} {W.shape[1]:8}{frozen}")
        if outside:
            lines.append("not covered")
            lines += [f"{weight.name:40} {shape(weight):>17}  {why}" for weight, why in outside]
        return "\n".join(lines)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_weights": []}  # a copy looks up its own model's


def select_weights(model: nn.Module, layers: Layers) -> list[Weight]:
    """The weights that `layers` means, each once, in the model's order; a reparametrized one as its layer has it.

    layers: see selection.chosen. Raises ValueError as Coverage does.
    """
    return Coverage(model, layers, reparametrized=True).weights()


def select_layers(model: nn.Module, layers: Layers) -> dict[str, nn.Module]:
    """The modules that hold these weights, by name.

    layers: a word: "conv", "conv+linear", "linear", "all", "spatial", "first"; names and patterns of layers; a compiled
    regular expression; a function of (name, module); a list of these. Raises ValueError as Coverage does.
    """
    return {weight.layer: weight.module for weight in select_weights(model, layers)}


NOT_SELECTED = "not selected"
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def shape(weight: Weight) -> str:
    if weight.parameter is None:
        return "reparametrized"
    return "lazy" if isinstance(weight.parameter, UninitializedParameter) else str(tuple(weight.parameter.shape))
