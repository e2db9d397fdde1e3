"""The command that trains runs which are there, made of their config: whoever doubts a row can train it again."""

import shlex
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from normloss.analysis.select import flatten
from normloss.config import CONFIGS, trained_config
from normloss.config.identity import ADDED
from normloss.config.labels import method, reg_files, spelled
from normloss.runs.records import RunRecord
from normloss.sweeps.composing import expand


def command_of(records: Iterable[RunRecord]) -> str:
    """Return the `python train.py` command whose runs are these, which differ in the seed only.

    Of the data set's recipes and `mini` the one that leaves the fewest keys to set is named. "" for a method that
    configs/reg does not have.
    """
    runs = sorted(records, key=lambda run: run.config["seed"])
    config = runs[0].config
    name = method(config).split()[0]
    if name not in reg_files():
        return ""
    dataset = config["dataset"]["name"]
    groups = (f"dataset={dataset}", f"model={config['model']['name']}", f"reg={name}")
    recipes = ["mini", *sorted(path.stem for path in (CONFIGS / "recipe").glob(f"{dataset}_*.yaml"))]
    words = min(([*groups, f"recipe={one}", *_set((*groups, f"recipe={one}"), config)] for one in recipes), key=len)
    seeds = ",".join(str(run.config["seed"]) for run in runs)
    return f"python train.py {'-m ' * (len(runs) > 1)}{shlex.join(words)} seed={seeds}"


def _set(groups: tuple[str, ...], config: Mapping[str, Any]) -> list[str]:
    """Return the overrides that make what `groups` compose to the trained part of a config."""
    composed, wanted = _composed(groups), ADDED | flatten(trained_config(config))
    return [f"{key}={spelled(value)}" for key, value in wanted.items() if key != "seed" and composed.get(key) != value]


@cache
def _composed(groups: tuple[str, ...]) -> dict[str, Any]:
    (cfg,) = expand(groups)
    return ADDED | flatten(trained_config(cfg.stored()))
