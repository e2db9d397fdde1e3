"""What the paper's text claims, beside what our runs say to it."""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from normloss.analysis.cost import comparable_times
from normloss.analysis.paper import Paper, PaperTable
from normloss.analysis.render import Table
from normloss.analysis.studies import METHODS, Study
from normloss.analysis.tables import paired_by_seed

COLUMNS = ("claim", "section", "paper", "ours")


def claims(df: pd.DataFrame, study: Study, paper: Paper) -> Table:
    """One row a claim; "missing" where there are no runs to tell."""
    title = "; ".join(filter(None, ["The paper's claims", study.title]))
    rows = [*(_errors(df, paper) if not study.prefix else _mini_errors(df, study))]
    rows += [*_sensitivity(df, study, paper), *_speed(df, study)]
    if not study.prefix:
        rows += [_overhead(df, paper)]
    notes = [
        "nl − wd: difference of test error in points, paired by seed."
        " Early: epochs before the first drop of the learning rate."
    ]
    return Table(f"{study.prefix}claims", title, COLUMNS, rows, notes, left=4)


def _errors(df: pd.DataFrame, paper: Paper) -> Iterable[list[str]]:
    for table in paper.tables.values():
        for model in dict.fromkeys(row.model for row in table.rows):
            yield [f"{table.title.partition(',')[0]}, {model}: nl − wd", table.section, *_difference(table, model, df)]


def _difference(table: PaperTable, model: str, df: pd.DataFrame) -> tuple[str, str]:
    wd, nl = table.row(model, "wd"), table.row(model, "nl")
    key = "mean" if "mean" in nl.values else "top1"
    return f"{nl.values[key] - wd.values[key]:+.3f}", paired_by_seed(wd.cell.done(df), nl.cell.done(df))


def _mini_errors(df: pd.DataFrame, study: Study) -> Iterable[list[str]]:
    wd, nl = (study.trained(df, f"reg={method}") for method in METHODS)
    yield ["nl − wd", "V-C", "not in the paper", paired_by_seed(wd, nl)]


def _sensitivity(df: pd.DataFrame, study: Study, paper: Paper) -> Iterable[list[str]]:
    lam = [_points(study.sweep(df, method, ("reg.lam",)), "reg.lam") for method in METHODS]
    size = [_points(study.sweep(df, method, ("train.batch_size",)), "train.batch_size") for method in METHODS]
    yield ["λ moves nl's test error less than wd's", "V-A", "Figure 2, no numbers", _ranges(lam, "λ")]
    yield ["nl is steadier over batch sizes", "V-B", "Figure 4, no numbers", _ranges(size, "batch sizes")]
    theirs = paper.text["batch_size"]
    ahead = ", ".join(map(str, theirs["wd_ahead"]))
    yield [
        "best batch size; sizes at which wd is ahead of nl",
        "V-B",
        f"{theirs['best']} for both; {ahead}",
        _best_sizes(*size),
    ]


def _points(runs: pd.DataFrame, key: str) -> pd.Series:
    """Mean test error over seeds, by the value of `key`."""
    return runs.groupby(runs[key].astype(float))["test_error"].mean()


def _ranges(points: list[pd.Series], what: str) -> str:
    shared = points[0].index.intersection(points[1].index)
    if len(shared) < 2:
        return "missing"
    spans = (
        f"{method} {one[shared].max() - one[shared].min():.2f}" for method, one in zip(METHODS, points, strict=True)
    )
    return f"range over {len(shared)} {what}: {', '.join(spans)} points"


def _best_sizes(wd: pd.Series, nl: pd.Series) -> str:
    shared = wd.index.intersection(nl.index)
    if len(shared) < 2:
        return "missing"
    ahead = ", ".join(f"{size:g}" for size in shared if wd[size] < nl[size]) or "none"
    return f"{wd[shared].idxmin():g} for wd, {nl[shared].idxmin():g} for nl; {ahead} (of {len(shared)})"


def _speed(df: pd.DataFrame, study: Study) -> Iterable[list[str]]:
    wd, nl = (study.trained(df, f"reg={method}") for method in METHODS)
    faster = _early(wd, nl, lambda early: np.mean([epoch["train_ce"] for epoch in early]), 1, "nats")
    yield ["nl trains faster: early mean cross entropy", "V-C", "Figure 5, no numbers", faster]
    steadier = _early(wd, nl, _mean_change, 2, "points")
    yield ["nl is more stable: early mean change of test error an epoch", "V-C", "Figure 6, no numbers", steadier]


def _mean_change(epochs: list[dict]) -> float:
    return float(np.abs(np.diff([epoch["test_error"] for epoch in epochs])).mean())


def _early(wd: pd.DataFrame, nl: pd.DataFrame, measure: Callable[[list[dict]], float], least: int, unit: str) -> str:
    """`measure` of the epochs before the first drop, where there are at least so many; mean over seeds."""
    values = []
    for runs in (wd, nl):
        early = [_before_first_drop(run) for run in runs["record"]]
        early = [epochs for epochs in early if len(epochs) >= least]
        if not early:
            return "missing" if runs.empty else "too few epochs to tell"
        values.append(np.mean([measure(epochs) for epochs in early]))
    return f"wd {values[0]:.3f}, nl {values[1]:.3f} {unit} (n = {len(wd)}, {len(nl)})"


def _before_first_drop(record) -> list[dict]:
    milestones = record.config["train"]["milestones"]
    return record.epochs[: milestones[0]] if milestones else record.epochs


def _overhead(df: pd.DataFrame, paper: Paper) -> list[str]:
    hours = paper.text["hours"]
    table = paper.tables["table1"]
    wd, nl = (table.row("ResNet110", method).cell.done(df) for method in METHODS)
    theirs = f"{hours['nl']} h / {hours['wd']} h = {hours['nl'] / hours['wd']:.4f}"
    return ["time of a ResNet110 run on CIFAR-10, nl / wd", "V-C", theirs, _time_ratio(wd, nl)]


def _time_ratio(wd: pd.DataFrame, nl: pd.DataFrame) -> str:
    wd, nl, at_once = comparable_times(wd, nl)
    if wd.empty or nl.empty:
        return "missing"
    seconds = [runs["seconds"].mean() / 3600 for runs in (wd, nl)]
    devices = {record.meta.get("device_name", "?") for runs in (wd, nl) for record in runs["record"]}
    hours = f"{seconds[1]:.2f} h / {seconds[0]:.2f} h = {seconds[1] / seconds[0]:.4f}"
    return f"{hours} on {', '.join(sorted(devices))}{at_once}"
