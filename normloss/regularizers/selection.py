"""`layers`: which weights of a model are meant, by words, names, patterns or a function."""

import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from normloss.regularizers.kinds import Weight

Layers = str | re.Pattern[str] | Callable[[str, nn.Module], bool] | Sequence[Any]

WORDS = {
    "conv": {"conv"},
    "conv+linear": {"conv", "linear"},
    "linear": {"linear"},
    "all": {"conv", "linear", "embedding"},
    "spatial": {"conv"},
    "first": {"conv"},
}
EXPECTED = (
    f"layers must be {', '.join(WORDS)}, a name or a pattern of layers, a compiled regular expression, a list of these"
    " (with ! before what is left out) or a function of (name, module)"
)


def chosen(layers: Layers, weights: list[Weight], model: nn.Module) -> set[int]:
    """Which of `weights`, by their positions.

    layers: a word: "conv", "conv+linear" (attention and recurrent layers too), "linear", "all" (embeddings too),
    "spatial" (convolutions larger than 1x1), "first" (the first convolution); the name of a layer, of a module that
    holds layers or of a parameter, with * ? [] as in a shell; a compiled regular expression, searched in layers' and
    parameters' names; a function of (name, module); a list of these, in which "!x" leaves out what x means.
    Raises ValueError for anything else, and for what matches nothing.
    """
    if not isinstance(layers, list | tuple | set | frozenset) or not layers:
        return matched(layers, weights, model)
    out = [item for item in layers if isinstance(item, str) and item.startswith("!")]
    taken = [item for item in layers if item not in out]
    inside = set().union(*(matched(item, weights, model) for item in taken or ["conv+linear"]))
    return inside.difference(*(matched(item[1:], weights, model) for item in out))


def matched(item: Any, weights: list[Weight], model: nn.Module) -> set[int]:
    if isinstance(item, str):
        if item in WORDS:
            return by_word(item, weights)
        found = {k for k, weight in enumerate(weights) if weight.has_filters(item) and named(weight, item)}
        expected = EXPECTED
    elif isinstance(item, re.Pattern):
        found = {
            k
            for k, weight in enumerate(weights)
            if weight.has_filters() and (item.search(weight.layer) or item.search(weight.path))
        }
        expected = "layers must match a layer"
    elif callable(item) and not isinstance(item, type):
        return by_function(item, weights, model)
    else:
        raise ValueError(f"{EXPECTED}, got {item!r}")
    if not found:
        raise ValueError(f"{expected}, got {item!r}: no layer with filters of {type(model).__name__} has such a name")
    return found


def by_word(word: str, weights: list[Weight]) -> set[int]:
    found = [k for k, weight in enumerate(weights) if weight.kind and weight.kind.word in WORDS[word]]
    if word == "spatial":
        found = [k for k in found if max(weights[k].module.kernel_size) > 1]  # type: ignore[arg-type]
    return set(found[:1] if word == "first" else found)


def by_function(function: Callable[[str, nn.Module], bool], weights: list[Weight], model: nn.Module) -> set[int]:
    found: set[int] = set()
    for name, module in model.named_modules():
        if function(name, module):
            here = {k for k, weight in enumerate(weights) if weight.layer == name and weight.has_filters()}
            if not here:
                raise ValueError(f"layer {name!r} ({type(module).__name__}) has no weight with one filter per row")
            found |= here
    return found


def named(weight: Weight, pattern: str) -> bool:
    """Whether the pattern names the parameter, its layer or a module around it."""
    return fnmatchcase(weight.path, pattern) or any(fnmatchcase(name, pattern) for name in around(weight.layer))


def around(layer: str) -> Iterator[str]:
    while layer:
        yield layer
        layer = layer.rpartition(".")[0]
