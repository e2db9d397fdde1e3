"""The names of runs for people: one spelling of a config, for the terminal, tables, figures and the report."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from normloss.config.plain import as_dict, read_dict

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"


def rescale(epochs: Sequence[int], of: int, to: int) -> list[int]:
    """Return rising epochs of a training of `of` epochs at the same share of one of `to`, for ${rescale:...}.

    Where some would coincide, the later ones move until they are one epoch apart, `to` at most.
    """
    found: list[int] = []
    for epoch in epochs:
        found.append(max(round(epoch * to / of), found[-1] + 1 if found else 1))
    return [min(epoch, to) for epoch in found]


OmegaConf.register_new_resolver("rescale", rescale)


def label(stored: Mapping[str, Any]) -> str:
    """Return "digits resnet8 nl lam=0.01 seed=0" for a stored config; a truncated run says that it is one."""
    dataset = stored["dataset"]
    of = dataset.get("label", dataset["name"])
    images = dataset["name"] if of == dataset["name"] else f"{dataset['name']} {of}"
    truncated = describe_truncation(stored["train"])
    words = [images, stored["model"]["name"], method(stored), f"seed={stored['seed']}", *filter(None, [truncated])]
    return " ".join(words)


def distinct(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a label for each config; where several have the same, with their own keys that differ."""
    found = [label(stored) for stored in configs]
    parts = ("dataset", "model", "train")
    keys = [{key: spelled(value) for part in parts for key, value in one[part].items()} for one in configs]
    texts = []
    for name, own in zip(found, keys, strict=True):
        alike = [other for other, text in zip(keys, found, strict=True) if text == name]
        telling = [key for key in own if len({other.get(key) for other in alike}) > 1]
        texts.append(" ".join([name, *(f"{key}={own[key]}" for key in telling)]))
    return texts


def method(stored: Mapping[str, Any], *without: str) -> str:
    """Return "nl lam=0.01 layers=conv": the nearest file of configs/reg, lam, and every key that differs from it.

    without: keys of reg that are left out, such as "lam".
    """
    reg = stored["reg"]
    files = [name for name, file in reg_files().items() if file["name"] == reg["name"]]
    epochs, values = stored["train"].get("epochs", 1), {key: reg[key] for key in reg if key not in ("name", "lam")}
    own = {}  # of each file, the keys that differ from it, without those that are empty in both
    for each in files:
        file = EMPTY | _resolved(each, epochs)
        own[each] = {key: value for key, value in values.items() if value != file.get(key)}
    name = min(files, key=lambda name: (len(own[name]), name != reg["name"]), default=None)
    if name is None:  # a method that is gone, or somebody's own
        name, own = reg["name"], {reg["name"]: {key: reg[key] for key in reg if key != "name"}}
    keys = {**({"lam": reg["lam"]} if reg.get("lam") else {}), **own[name]}
    return " ".join([name, *(f"{key}={spelled(value)}" for key, value in keys.items() if key not in without)])


def describe_truncation(train: Mapping[str, Any]) -> str:
    """Return "truncated to 3 steps, tested on 2 batches" for a run that ended early or was tested in part, else ""."""
    steps, batches = train.get("max_steps"), train.get("eval_batches")
    parts = [f"truncated to {counted(steps, 'step')}"] if steps else ["truncated"] if batches else []
    return ", ".join([*parts, *([f"tested on {batches} batch{'es' * (batches != 1)}"] if batches else [])])


def counted(number: int, noun: str) -> str:
    """Return 1 epoch, 2 epochs."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def spelled(value: Any) -> str:
    """Return a value as on the command line: 0.0001, true, null, [82,123]; "absent" for NaN."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(spelled, value))}]"
    if isinstance(value, float):
        return "absent" if math.isnan(value) else np.format_float_positional(value, trim="-")
    return value if isinstance(value, str) else json.dumps(value)


@cache
def reg_files() -> dict[str, dict[str, Any]]:
    """Return the contents of every configs/reg/*.yaml by its name: they say which keys a method has."""
    paths = sorted((CONFIGS / "reg").glob("*.yaml"))
    return {path.stem: read_dict(path) for path in paths}


@cache
def _resolved(name: str, epochs: int) -> dict[str, Any]:
    """Return a file's values; None where the recipe gives them."""
    whole = OmegaConf.create({"reg": reg_files()[name], "train": {"epochs": epochs}, "lam": {"wd": None, "nl": None}})
    return as_dict(whole, resolve=True)["reg"]


EMPTY = {"lam_milestones": [], "lam_gamma": 1.0, "lam_values": None, "weight_decay": 0.0}  # what every method has
