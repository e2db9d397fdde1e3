"""`layers`: the weights of a model that a method is asked to cover, by words, names, patterns or a function."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from normloss.regularizers.kinds import Weight

Layers = str | re.Pattern[str] | Mapping[str, Any] | Callable[[str, nn.Module], bool] | Sequence[Any]
Chosen = dict[int, Weight]  # by their positions among all weights of a model

WORDS = {
    "conv": {"conv"},
    "conv+linear": {"conv", "linear"},
    "linear": {"linear"},
    "all": {"conv", "linear", "embedding"},
    "spatial": {"conv"},
    "first": {"conv"},
}
EXPECTED = (
    f"layers must be {', '.join(WORDS)}, a name or a pattern of layers, a compiled regular expression, a dict of names"
    " and the axes that count outputs, a list of these (! excludes) or a function of (name, module)"
)


def chosen(layers: Layers, weights: list[Weight], model: nn.Module) -> Chosen:
    """Return the weights that `layers` selects, by their positions in `weights`.

    layers: a word: "conv", "conv+linear" (attention and recurrent layers too), "linear", "all" (embeddings too),
    "spatial" (convolutions larger than 1x1), "first" (the first convolution); the name of a layer, of a module that
    holds layers or of a parameter, with * ? [] as in a shell; a compiled regular expression, searched in layers' and
    parameters' names; {name or pattern of a parameter: axis}, where nothing says which axis counts outputs: axes before
    it are slices, (experts, outputs, inputs) has axis 1, and a last axis counts the outputs of the one before it; a
    function of (name, module); a list of these, in which "!x" leaves out x.
    Raises ValueError for anything else, and for what matches nothing.
    """
    if not isinstance(layers, list | tuple | set | frozenset) or not layers:
        return matched(layers, weights, model)
    out = [item for item in layers if isinstance(item, str) and item.startswith("!")]
    found: Chosen = {}
    for item in [item for item in layers if item not in out] or ["conv+linear"]:
        found |= matched(item, weights, model)
    left_out = set().union(*(matched(item[1:], weights, model) for item in out))
    return {k: weight for k, weight in found.items() if k not in left_out}


def matched(item: Any, weights: list[Weight], model: nn.Module) -> Chosen:
    if isinstance(item, str) and item in WORDS:
        return by_word(item, weights)
    if isinstance(item, Mapping) and item:
        return {k: weight for name, axis in item.items() for k, weight in by_axis(name, axis, weights, model).items()}
    fits = condition(item)
    found = {
        k: replace(weight, asked=item in (weight.layer, weight.path))
        for k, weight in enumerate(weights)
        if weight.has_filters(item) and fits(weight)
    }
    if not found:
        kind = type(model).__name__
        advice = ""
        if other := next((weight for weight in weights if weight.unknown and fits(weight)), None):
            shape, example = tuple(other.tensor.shape), {other.path: 1}
            advice = f"; say which axis of {other.path!r}, {shape}, counts outputs: layers={example}, for example"
        raise ValueError(f"{EXPECTED}, got {item!r}: no layer with filters of {kind} fits{advice}")
    return found


def condition(item: Any) -> Callable[[Weight], Any]:
    """Return a function of a weight: whether it, its layer or a module around that is what the item says."""
    if isinstance(item, str):
        return lambda weight: fnmatchcase(weight.path, item) or fnmatchcase(weight.path, f"{item}.*")
    if isinstance(item, re.Pattern):
        return lambda weight: item.search(weight.layer) or item.search(weight.path)
    if callable(item) and not isinstance(item, type):
        return lambda weight: item(weight.layer, weight.module)
    raise ValueError(f"{EXPECTED}, got {item!r}")


def by_word(word: str, weights: list[Weight]) -> Chosen:
    found = [k for k, weight in enumerate(weights) if weight.kind and weight.kind.word in WORDS[word]]
    if word == "spatial":
        found = [k for k in found if max(weights[k].module.kernel_size) > 1]  # type: ignore[arg-type]
    return {k: weights[k] for k in (found[:1] if word == "first" else found)}


def by_axis(name: str, axis: Any, weights: list[Weight], model: nn.Module) -> Chosen:
    """Return the weights of a name or pattern, of no known kind, with the axes that count their filters."""
    found = {k: weight for k, weight in enumerate(weights) if weight.unknown and fnmatchcase(weight.path, name)}
    if not found:
        raise ValueError(
            f"layers={{{name!r}: {axis!r}}} must name a parameter of two axes or more whose layer is of no known kind:"
            f" {type(model).__name__} has none of such a name"
        )
    return {k: replace(weight, axes=counting(axis, weight), asked=True, guessed=False) for k, weight in found.items()}


def counting(axis: Any, weight: Weight) -> tuple[int, ...]:
    """Return the axes that count a weight's filters, for the axis of its outputs."""
    shape = tuple(weight.tensor.shape)
    ndim = len(shape)
    if not isinstance(axis, int) or not -ndim <= axis < ndim:
        raise ValueError(
            f"layers={{{weight.path!r}: ...}} must be the axis that counts outputs, of shape {shape}, got {axis!r}"
        )
    outputs = axis % ndim
    return (*range(ndim - 2), outputs) if outputs == ndim - 1 else tuple(range(outputs + 1))
