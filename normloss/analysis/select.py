"""Runs as one DataFrame, selected and grouped by what was trained, never by an experiment's name."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from normloss.analysis import archive
from normloss.analysis.archive import ArchivedRun
from normloss.config import TRAINED, Config, did_you_mean, science
from normloss.errors import UserError
from normloss.runs.records import RunRecord, load_runs

# Of the last epoch, and the seconds of the whole run: NaN for a run that is not done.
METRICS = (
    "train_ce",
    "train_error",
    "test_ce",
    "test_error",
    "test_error_top5",
    "penalty",
    "norm_mean",
    "norm_min",
    "norm_max",
    "seconds",
)
BASELINES = ("none", "wd")  # the rows a table starts with


def load(store: Path, results: Path) -> pd.DataFrame:
    """The runs of a store and those archived in results/; a run that both have is the store's if it is done there."""
    runs = {run.id: run for run in archive.read(results)}
    for record in load_runs(store):
        if record.state == "done" or record.id not in runs:
            runs[record.id] = record
    return frame(runs.values())


def frame(records: Iterable[RunRecord | ArchivedRun]) -> pd.DataFrame:
    """One row a run: id, state, the scientific config ("dataset.name", "reg.lam", ...), METRICS, record."""
    rows = []
    for record in records:
        trained = flatten(science(record.config))
        metrics = {key: (record.final or {}).get(key, np.nan) for key in METRICS}
        rows.append({"id": record.id, "state": record.state, **trained, **metrics, "record": record})
    # object keeps null, true and 128 what they are where another run lacks the key
    df = pd.DataFrame(rows, columns=None if rows else ["id", "state", *METRICS, "record"], dtype=object)
    return df.astype(dict.fromkeys(METRICS, float))


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"reg": {"lam": 0.01}} -> {"reg.lam": 0.01}."""
    flat = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: as_cell(value)}
    return flat


def as_cell(value: Any) -> Any:
    """A config value as a cell holds it: a list is a tuple."""
    return tuple(value) if isinstance(value, list) else value


def where(df: pd.DataFrame, conditions: Mapping[str, Any]) -> pd.DataFrame:
    """The rows whose config has all these values, or one of a list's: {"dataset.name": "digits", "seed": [0, 1]}."""
    known = _config_keys(df)
    for key, value in conditions.items():
        if df.empty:
            break
        if key not in known:
            raise UserError(f"{key}: no run has such a key{did_you_mean(key, known)}")
        wanted = value if isinstance(value, list) else [value]
        df = df.loc[[cell in wanted for cell in df[key]]]
    return df


def matching(df: pd.DataFrame, cfg: Config, free: Iterable[str] = ("seed",)) -> pd.DataFrame:
    """The runs trained as `cfg` says but for the keys in `free`: whatever started them, by whatever name."""
    wanted = identity(cfg)
    keys = [key for key in {*wanted, *_config_keys(df)} if key not in set(free)]
    chosen = pd.Series(True, index=df.index)
    for key in keys:
        column = df[key] if key in df else pd.Series(np.nan, index=df.index)
        chosen &= column.map(spelled) == spelled(wanted.get(key, np.nan))
    return df[chosen]


def identity(cfg: Config) -> dict[str, Any]:
    """What is trained, flat: {"dataset.name": "cifar10", "reg.lam": 0.01, ...}."""
    return flatten(science(cfg.stored()))


def methods(df: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """label -> the runs of one method, that is of equal reg.*: they differ by seed only. Baselines come first.

    A label is the method and its lam, "wd λ=0.0001", and whatever other reg key tells two groups apart.
    """
    refuse_mixed_settings(df)
    labels = {}
    for name, runs in df.groupby("reg.name"):
        telling = [key for key in _config_keys(df) if key.startswith("reg.") and _differs(runs[key])]
        for row in runs.index:
            labels[row] = " ".join([name, *_details(runs.loc[row], telling)])
    df = df.loc[sorted(df.index, key=lambda row: _rank(df.loc[row]))]
    return dict(iter(df.groupby(pd.Series(labels), sort=False)))


def refuse_mixed_settings(df: pd.DataFrame) -> None:
    """Only reg and seed may differ between runs that are compared."""
    folders = df[df["dataset.name"] == "folder"]["record"]
    images = sorted({record.meta["data"] for record in folders if "data" in record.meta})
    if len(images) > 1:  # a folder's images are no part of a run's identity
        raise UserError(
            f"the {len(df)} runs were trained on different images ({', '.join(images)}) and cannot be compared:"
            " tell such sets apart by dataset.label"
        )
    setting = [key for key in _config_keys(df) if key != "seed" and not key.startswith("reg.")]
    differing = [key for key in setting if _differs(df[key])]
    if differing:
        # two datasets differ in a dozen keys: the name is the one to choose by
        key = min(differing, key=lambda key: not key.endswith(".name"))
        values = df[key].map(spelled).value_counts()
        raise UserError(
            f"the {len(df)} runs differ in {key} ({', '.join(sorted(values.index))}) and cannot be compared:"
            f" choose one, for example {key}={values.index[0]}"
        )


def describe_setting(df: pd.DataFrame) -> str:
    """What runs that can be compared have in common: "digits resnet8, 30 epochs, batch size 64"."""
    run = df.iloc[0]
    length = f"{run['train.max_steps']} steps" if run["train.max_steps"] else f"{run['train.epochs']} epochs"
    return f"{run['dataset.name']} {run['model.name']}, {length}, batch size {run['train.batch_size']}"


def spelled(value: Any) -> str:
    """As on the command line: digits, 0.0001, true, null, [82,123]; "absent" where a run lacks the key."""
    if isinstance(value, tuple):
        return f"[{','.join(map(spelled, value))}]"
    if isinstance(value, float):
        return "absent" if np.isnan(value) else np.format_float_positional(value, trim="-")
    return value if isinstance(value, str) else json.dumps(value)


def _config_keys(df: pd.DataFrame) -> list[str]:
    return [key for key in df if key.split(".")[0] in TRAINED]


def _differs(column: pd.Series) -> bool:
    return column.map(spelled).nunique() > 1


def _rank(run: pd.Series) -> tuple:
    return run["reg.name"] not in BASELINES, run["reg.name"], run["reg.lam"], run["seed"]


def _details(run: pd.Series, telling: list[str]) -> list[str]:
    lam = [f"λ={spelled(run['reg.lam'])}"] if run["reg.lam"] else []
    return lam + [f"{key.removeprefix('reg.')}={spelled(run[key])}" for key in telling if key != "reg.lam"]
