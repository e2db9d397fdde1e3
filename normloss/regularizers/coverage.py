"""The weights of a model that a method covers: selected by the names of modules and parameters, looked up when used.

So what is put in place of a layer or Parameter is covered too: load_state_dict(assign=True), pruning, a new head.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from operator import is_
from typing import Any

from torch import nn

from normloss.regularizers.kinds import EMPTY, FLAT, Weight, is_flat, unserved, weights_of
from normloss.regularizers.selection import Layers, chosen

NOT_SELECTED = "not selected"


class Coverage:
    """The weights of `model` that `layers` selects, each once; layers: as in selection.chosen, None: every parameter.

    refuse: returns why a method leaves a weight alone, None where it does not. reparametrized: whether it may be.
    Raises ValueError for what is no module, for layers that match nothing, for a lazy layer that has not run yet, for a
    reparametrized weight, for a flat shard of FSDP1, and for a quantized or complex weight that was asked for by name.
    """

    _weights: list[Weight] = []
    _tables: Sequence[dict[str, Any]] = ()  # the children and parameters of each module, and
    _entries: Sequence[Any] = (None,)  # all that these held; before the first look nothing equals this

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
        self.weights()

    def weights(self) -> list[Weight]:
        """Return the weights covered now, frozen ones too, in the model's order."""
        entries = [*chain.from_iterable(map(dict.values, self._tables))]
        if len(entries) != len(self._entries) or not all(map(is_, entries, self._entries)):
            self._weights = self.survey()[0]
            self._tables = [table for m in self.model.modules() for table in (m._modules, m._parameters)]
            self._entries = [*chain.from_iterable(map(dict.values, self._tables))]
        return self._weights

    def survey(self) -> tuple[list[Weight], list[tuple[Weight, str]]]:
        """Return the weights covered, and those of two axes or more that are not, with why."""
        everything = weights_of(self.model)
        if self.layers is None:
            selected = {k: weight for k, weight in enumerate(everything) if weight.parameter is not None}
        else:
            selected = chosen(self.layers, everything, self.model)
        inside: dict[int, Weight] = {}
        outside: list[tuple[Weight, str]] = []
        for k, weight in enumerate(everything):
            why: str | None = NOT_SELECTED if weight.kind else f"a parameter of {type(weight.module).__name__}"
            if k in selected:
                why = self.reason(selected[k])
            if why or id(weight.parameter) in inside:
                outside.append((weight, why or ""))
            else:
                inside[-1 - k if weight.parameter is None else id(weight.parameter)] = selected[k]
        if not inside and not any(why == EMPTY for _, why in outside):
            reasons = [f"{weight.name}: {why}" for weight, why in outside if why != NOT_SELECTED and weight.kind]
            why = f" ({'; '.join(reasons[:3])})" if reasons else ""
            raise ValueError(f"no layer of {type(self.model).__name__} matches layers={self.layers!r}{why}")
        tied = {key: f"the same as {weight.name}" for key, weight in inside.items()}
        listed = [
            (weight, tied.get(id(weight.parameter), why))
            for weight, why in outside
            if weight.parameter is None or weight.parameter.ndim > 1
        ]
        return list(inside.values()), listed

    def reason(self, weight: Weight) -> str | None:
        """Return why a selected weight is not covered, None where it is; raise ValueError where it has to be."""
        parameter = weight.parameter
        if is_flat(weight, self.model):
            raise ValueError(f"the weight of layer {weight.name!r} {FLAT}")
        if parameter is None and self.reparametrized:
            return None
        if parameter is None:
            raise ValueError(
                f"the weight of layer {weight.name!r} is reparametrized: penalties and projections need a plain one;"
                " leave it out with layers=..."
            )
        why = unserved(parameter)
        if why and weight.asked and parameter.numel():
            raise ValueError(f"the weight of layer {weight.name!r} cannot be covered: {why}")
        return why or (self.refuse(weight) if self.refuse else None)

    def table(self) -> str:
        """Return a line for each weight of two axes or more: what is covered, then what is not, and why."""
        inside, outside = self.survey()
        lines = [f"{'covered':40} {'filters':>8} {'length':>8}"]
        for weight in inside:
            if weight.parameter is None:
                lines.append(f"{weight.name:40} reparametrized")
            elif weight.parameter.ndim > 1:
                W = weight.matrix(weight.parameter.detach().to("meta"))
                frozen = "" if weight.parameter.requires_grad else "  frozen: not changed"
                guess = "  that axis 0 counts filters is a guess" if weight.guessed else ""
                lines.append(f"{weight.name:40} {len(W):8} {W.shape[1]:8}{frozen}{guess}")
        if outside:
            lines.append("not covered")
            lines += [f"{weight.name:40} {shape(weight):>17}  {why}" for weight, why in outside]
        return "\n".join(lines)

    def __getstate__(self) -> dict[str, Any]:
        looked_up = ("_weights", "_tables", "_entries")  # a copy looks up its own model's
        return {key: value for key, value in self.__dict__.items() if key not in looked_up}


def select_weights(model: nn.Module, layers: Layers) -> list[Weight]:
    """Return the weights that `layers` selects, each once, in the model's order; a reparametrized one too.

    layers: see selection.chosen. Raises ValueError as Coverage does.
    """
    return Coverage(model, layers, reparametrized=True).weights()


def select_layers(model: nn.Module, layers: Layers) -> dict[str, nn.Module]:
    """Return the modules that hold the weights that `layers` selects, by name.

    layers: a word: "conv", "conv+linear", "linear", "all", "spatial", "first"; names and patterns of layers; a compiled
    regular expression; {name of a parameter: axis of its outputs}; a function of (name, module); a list of these.
    Raises ValueError as Coverage does.
    """
    return {weight.layer: weight.module for weight in select_weights(model, layers)}


def shape(weight: Weight) -> str:
    return "reparametrized" if weight.parameter is None else str(tuple(weight.parameter.shape))
