"""Runs as one DataFrame, selected and grouped by what was trained, never by an experiment's name."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from normloss.config import TRAINED, Config, did_you_mean, labels, trained_config
from normloss.config.identity import ADDED, fp32_setting_id, is_truncated, setting_id
from normloss.config.labels import spelled
from normloss.errors import UserError
from normloss.runs.records import FINAL, RunRecord, load_archive, load_runs

# Of the last epoch, and the seconds of the whole run: NaN for a run that is not done.
METRICS = tuple(key for key in FINAL if key not in ("epochs", "steps"))
TRUNCATED = ("train.max_steps", "train.eval_batches")  # keys that make a run a truncated one, which is no evidence
SCHEDULE = ("train.lr", "train.milestones", "train.gamma")  # what train.lr_values stands in place of
FIRST = ("none", "wd", "nl")  # the methods that a table and a figure begin with


def load(store: Path, results: Path, first: Literal["archive", "store"] = "archive") -> pd.DataFrame:
    """Return the runs archived in results/ and those of a store as a frame."""
    return frame(gather(store, results, first))


def gather(store: Path, results: Path, first: Literal["archive", "store"] = "archive") -> list[RunRecord]:
    """Return the runs archived in results/ and those of a store, each id once.

    first: which of two copies counts. The archived one, so that what git keeps is the same on every machine; or this
    machine's own, if it is done.
    """
    archived = {run.id: run for run in load_archive(results)}
    own = {run.id: run for run in load_runs(store)}
    if first == "store":
        preferred = {id: run for id, run in own.items() if run.state == "done" or id not in archived}
        return [*(archived | preferred).values()]
    return [*(own | archived).values()]


def frame(records: Iterable[RunRecord]) -> pd.DataFrame:
    """Return one row per run: id, cell, state, the trained config ("dataset.name", "reg.lam", ...), METRICS, record."""
    rows = []
    for record in records:
        what = trained_config(record.config)
        trained = ADDED | flatten(what)  # a key that is newer than a run has its default there
        final = record.final or {}
        metrics = {key: final.get(key, np.nan) for key in METRICS}
        settings = {"setting_id": setting_id(what), "fp32_setting_id": fp32_setting_id(what)}
        rows.append({"id": record.id, **settings, "state": record.state, **trained, **metrics, "record": record})
    # object keeps null, true and 128 what they are where another run lacks the key
    columns = None if rows else ["id", "setting_id", "fp32_setting_id", "state", *METRICS, "record"]
    return pd.DataFrame(rows, columns=columns, dtype=object).astype(dict.fromkeys(METRICS, float))


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested keys joined by dots: {"reg": {"lam": 0.01}} -> {"reg.lam": 0.01}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: as_cell(value)}
    return flat


def as_cell(value: Any) -> Any:
    """Return a config value as a cell of the frame holds it: a list is a tuple."""
    return tuple(value) if isinstance(value, list) else value


# which runs --------------------------------------------------------------------------------------


def done(df: pd.DataFrame) -> pd.DataFrame:
    """Return the finished runs."""
    return df[df["state"] == "done"]


def ended(df: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that finished or diverged: numbers are of the first, the others are counted in words."""
    return df[df["state"].isin(("done", "diverged"))]


def without_truncated(df: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that were not truncated on purpose."""
    return df[[not is_truncated(record.config) for record in df["record"]]] if len(df) else df


def one_precision(df: pd.DataFrame) -> pd.DataFrame:
    """Return each network's runs in the precision with more finished runs; fp32 on a tie (D21)."""
    if df.empty or df["train.precision"].nunique() < 2:
        return df
    chosen = []
    for _, some in df.groupby(["dataset.name", "model.name"]):
        finished = done(some)["train.precision"].value_counts()
        precision = max(("fp32", "tf32"), key=lambda one: finished.get(one, 0))
        chosen.append(some[some["train.precision"] == precision])
    return pd.concat(chosen).sort_index()


def trained_as(
    df: pd.DataFrame, names: Mapping[str, list[str]], configs: Callable[[], Iterable[Config]], own: bool = False
) -> pd.DataFrame:
    """Return the runs that differ from a config only by seed, or by TF32 (D21), whatever started them.

    names: "dataset" and "model" -> the only names that the configs have. They are not composed where no run has one.
    own: only runs in the config's own precision.
    """
    for key, chosen in names.items():
        if chosen and len(df):
            df = df[df[f"{key}.name"].isin(chosen)]
    if df.empty:
        return df
    if own:
        return df[df["setting_id"].isin({cfg.setting_id for cfg in configs()})]
    return one_precision(df[df["fp32_setting_id"].isin({cfg.fp32_setting_id for cfg in configs()})])


def in_tf32(df: pd.DataFrame) -> bool:
    return len(df) > 0 and bool((df["train.precision"] == "tf32").all())


def where(df: pd.DataFrame, conditions: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows whose config has these values, or one of a list's: {"dataset.name": "digits", "seed": [0, 1]}.

    Raises UserError for a key that no run has.
    """
    for key, value in conditions.items():
        if df.empty:
            break
        check_key(df, key)
        wanted = value if isinstance(value, list) else [value]
        df = df.loc[[cell in wanted for cell in df[key]]]
    return df


def config_keys(df: pd.DataFrame) -> list[str]:
    return [key for key in df if key.split(".")[0] in TRAINED]


def check_key(df: pd.DataFrame, key: str) -> None:
    known = config_keys(df)
    if key not in known:
        raise UserError(f"{key}: no run has such a key{did_you_mean(key, known)}")


# numbers -----------------------------------------------------------------------------------------


def value_of(df: pd.DataFrame, measured: str) -> pd.Series:
    """Return a logged quantity at the end of each run: a key of its last epoch, or test_accuracy.

    Raises UserError for a quantity that no run has logged.
    """
    if measured == "test_accuracy":
        return 100 - df["test_error"]
    finals = [record.final or {} for record in df["record"]]
    known = sorted({key for final in finals for key, value in final.items() if isinstance(value, (int, float))})
    if measured not in known:
        raise UserError(f"{measured}: no run has logged it{did_you_mean(measured, [*known, 'test_accuracy'])}")
    return pd.Series([final.get(measured, np.nan) for final in finals], index=df.index, dtype=float)


def as_number(key: str, value: Any) -> float:
    """Return a swept value on an axis; raises UserError for what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{key}: must be a number to be an axis, got {spelled(value)}")
    return float(value)


def by_number(df: pd.DataFrame, key: str) -> dict[float, pd.Index]:
    """Return the places of the runs by their value of a swept key, ascending; raises UserError as as_number does."""
    return dict(sorted(df.groupby([as_number(key, value) for value in df[key]]).groups.items()))


# groups ------------------------------------------------------------------------------------------


def series(df: pd.DataFrame, over: Iterable[str] = (), by: Iterable[str] = ()) -> dict[str, pd.DataFrame]:
    """Return label -> the runs of one line of a figure: they differ by seed and the keys `over`, which are in no label.

    A label is the method and its lam, "wd λ=0.0001", and where that is not enough whatever else tells two apart.
    by: keys outside reg that may differ between groups. Groups are in the order of their values, baselines first.
    """
    if df.empty:
        return {}
    over, by = set(over), list(by)
    for key in (*over, *by):
        check_key(df, key)
    refuse_mixed_settings(df, {*over, *by})
    keys = [key for key in config_keys(df) if key not in ("seed", *over) and _differs(df[key])]
    groups = [runs for _, runs in df.groupby([df[key].map(spelled) for key in keys], sort=False)] if keys else [df]
    groups.sort(key=lambda runs: _order(runs.iloc[0], over, by))
    return dict(zip(_labels([runs.iloc[0] for runs in groups], over, by), groups, strict=True))


def _labels(runs: list[pd.Series], over: set[str], by: list[str]) -> list[str]:
    """Return a name for each run, as short as tells them apart."""
    skip = {key.removeprefix("reg.") for key in over}
    inner = {key.removeprefix("reg.") for run in runs for key in run.index if key.startswith("reg.")} - {"name", "lam"}
    short = [labels.method(run["record"].config, *skip, *inner) for run in runs]
    long = [labels.method(run["record"].config, *skip) for run in runs]
    made = [full if short.count(brief) > 1 else brief for brief, full in zip(short, long, strict=True)]
    telling = [key for key in by if not key.startswith("reg.") and len({spelled(run[key]) for run in runs}) > 1]
    made = [with_symbols(" ".join([one, *_details(run, telling)])) for one, run in zip(made, runs, strict=True)]
    return [f"{one} ({run['setting_id']})" if made.count(one) > 1 else one for one, run in zip(made, runs, strict=True)]


def _details(run: pd.Series, keys: list[str]) -> list[str]:
    texts = {}
    for key in (key for key in keys if run[key] is not None):  # as on the command line, of a long list the first one
        value = run[key]
        texts[key] = f"[{spelled(value[0])},…]" if isinstance(value, tuple) and len(value) > 3 else spelled(value)
    return [text if key.endswith(".name") else f"{key.split('.')[-1]}={text}" for key, text in texts.items()]


def with_symbols(text: str) -> str:
    """Return a label as tables and figures have it: λ for lam."""
    return text.replace("lam=", "λ=")


def _order(run: pd.Series, over: set[str], by: list[str]) -> tuple:
    name, others = run["reg.name"], [_sortable(run[key]) for key in by]
    keys = sorted(key for key in run.index if key.startswith("reg.") and key not in over)
    keys.sort(key=lambda key: key != "reg.lam")  # before all others
    return others, FIRST.index(name) if name in FIRST else len(FIRST), name, [_sortable(run[key]) for key in keys]


def _sortable(value: Any) -> tuple:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (0, value, "") if number and value == value else (1, 0, spelled(value))


def refuse_mixed_settings(df: pd.DataFrame, but: Iterable[str]) -> None:
    """Raise UserError where more than reg, seed and the keys in `but` differs between runs that are compared."""
    folders = df[df["dataset.name"] == "folder"]["record"]
    images = sorted({record.meta["data"] for record in folders if "data" in record.meta})
    if len(images) > 1:  # a folder's images are no part of a run's identity
        raise UserError(
            f"the {len(df)} runs were trained on different images ({', '.join(images)}) and cannot be compared:"
            " tell such sets apart by dataset.label"
        )
    # a key of the same section comes with its name: two networks differ in depth and width too
    free = {key.removesuffix(".name") for key in but if key.endswith(".name")} | {"seed", "reg"}
    taken = {*but, *(SCHEDULE if "train.lr_values" in but else ())}  # rates of their own have no schedule
    differing = [key for key in config_keys(df) if key not in taken and key.split(".")[0] not in free]
    differing = [key for key in differing if _differs(df[key])]
    if differing:
        # two datasets differ in a dozen keys: the name is the one to choose by
        key = min(differing, key=lambda key: not key.endswith(".name"))
        values = df[key].map(spelled).value_counts()
        raise UserError(
            f"the {len(df)} runs differ in {key} ({', '.join(sorted(values.index))}) and cannot be compared:"
            f" choose one, for example {key}={values.index[0]}"
        )


def _differs(column: pd.Series) -> bool:
    return column.map(spelled).nunique() > 1


# in words ----------------------------------------------------------------------------------------


def describe_setting(df: pd.DataFrame) -> str:
    """Return what runs that can be compared have in common: "digits resnet8, 30 epochs, batch size 64"."""
    run = df.iloc[0]
    words = {"train.epochs": labels.counted(run["train.epochs"], "epoch")}
    words |= {"train.batch_size": f"batch size {run['train.batch_size']}"}
    same = [text for key, text in words.items() if not _differs(df[key])]
    truncated = sorted({labels.describe_truncation(record.config["train"]) for record in df["record"]} - {""})
    return ", ".join([f"{run['dataset.name']} {run['model.name']}", *same, *truncated])


def describe_diverged(df: pd.DataFrame, keys: Iterable[str] = ()) -> str:
    """Return "Diverged, not counted: nl λ=1 (2)." where runs of `df` diverged, else "".

    keys: config keys outside reg that tell the runs apart.
    """
    keys, bad = [key for key in keys if not key.startswith("reg.")], df[df["state"] == "diverged"]
    counts = Counter(" ".join([labels.method(run["record"].config), *_details(run, keys)]) for _, run in bad.iterrows())
    names = ", ".join(f"{name} ({runs})" if runs > 1 else name for name, runs in sorted(counts.items()))
    return f"Diverged, not counted: {with_symbols(names)}." if names else ""
