"""Tables in the paper's cell format, best (mean), beside the paper's numbers; and the comparison of any methods."""

from collections.abc import Iterable

import pandas as pd

from normloss.analysis.cost import estimate
from normloss.analysis.paper import Cell, PaperTable, Row
from normloss.analysis.render import Table
from normloss.analysis.select import describe_setting, methods
from normloss.analysis.stats import Summary, paired, summarize

COMPARISON = (
    "method",
    "n",
    "test error %, best (mean ± sd)",
    "95 % interval of the mean",
    "test cross entropy",
    "filter norm, mean (min–max)",
    "s a run",
)
PAPERS = ("model", "method", "paper, best (mean)", "ours, best (mean ± sd)", "n", "Δ mean", "95 % interval of our mean")
TOP = ("model", "method", "paper, top-1", "ours, top-1", "Δ top-1", "paper, top-5", "ours, top-5", "Δ top-5", "n")
RULES = (
    "Last epoch; best means the best seed, never the best epoch. Δ: ours − the paper's."
    " ±: sample standard deviation over seeds; interval: Student's t. *: not run by the paper but quoted from [n]."
)


# the paper's tables ------------------------------------------------------------------------------


def paper_table(table: PaperTable, df: pd.DataFrame) -> Table:
    """One of the paper's tables with our runs beside its numbers, what is missing, and nl against wd by seed."""
    cells = [_top_row(row, df) if "top1" in row.values else _row(row, df, table.seeds) for row in table.rows]
    columns = TOP if "top1" in table.rows[0].values else PAPERS
    notes = [RULES, *_against_wd(table, df), *_missing(table, df)]
    return Table(table.name, table.title, columns, cells, notes, left=2)


def _row(row: Row, df: pd.DataFrame, seeds: int) -> list[str]:
    theirs = best_and_mean(row.values.get("best"), row.values.get("mean"))
    if row.cell is None:
        return [row.model, _method(row), theirs, "as wd above", "", "", ""]
    ours = summarize(row.cell.done(df)["test_error"])
    difference = f"{ours.mean - row.values['mean']:+.2f}" if ours.n else "–"
    return [row.model, _method(row), theirs, _ours(ours, seeds), str(ours.n), difference, interval(ours)]


def _top_row(row: Row, df: pd.DataFrame) -> list[str]:
    runs = row.cell.done(df) if row.cell else pd.DataFrame()
    cells = []
    for key, metric in (("top1", "test_error"), ("top5", "test_error_top5")):
        theirs = row.values.get(key)
        ours = summarize(runs[metric]).mean if len(runs) else None
        known = "as wd above" if row.cell is None else "missing" if ours is None else f"{ours:.2f}"
        cells += [_number(theirs), known, "–" if ours is None or theirs is None else f"{ours - theirs:+.2f}"]
    return [row.model, _method(row), *cells, str(len(runs)) if row.cell else ""]


def _method(row: Row) -> str:
    return f"{row.method} [{row.quoted}]*" if row.quoted else row.method


def _ours(ours: Summary, seeds: int) -> str:
    if ours.n == 0:
        return "missing"
    few = f", {ours.n} of {seeds} seeds" if ours.n < seeds else ""
    return best_and_spread(ours) + few


def _against_wd(table: PaperTable, df: pd.DataFrame) -> Iterable[str]:
    """nl - wd of each network, in the paper and in ours."""
    for model in dict.fromkeys(row.model for row in table.rows):
        wd, nl = table.row(model, "wd"), table.row(model, "nl")
        key = "top1" if "top1" in nl.values else "mean"
        theirs = f"{nl.values[key] - wd.values[key]:+.3f}"
        ours = paired_by_seed(wd.cell.done(df), nl.cell.done(df))
        yield f"{model}, nl − wd: the paper {theirs}; ours {ours}."


def _missing(table: PaperTable, df: pd.DataFrame) -> Iterable[str]:
    for row in table.rows:
        if row.cell is None:
            continue
        unfinished = [f"{run.id} is {run.state}" for run in row.cell.runs(df).itertuples() if run.state != "done"]
        seeds = row.cell.missing(df, table.seeds)
        if seeds:
            yield (
                f"{row.model} {_method(row)}, {len(seeds)} missing: `{row.cell.command(seeds)}`"
                f" ({_how_long(row.cell, df)}){''.join(f'; {text}' for text in unfinished)}."
            )


def _how_long(cell: Cell, df: pd.DataFrame) -> str:
    known = estimate(df, cell.config)
    return str(known) if known else f"{cell.config.train.epochs} epochs a run; no such run yet to tell how long"


# nl against wd -----------------------------------------------------------------------------------


def paired_by_seed(a: pd.DataFrame, b: pd.DataFrame, metric: str = "test_error") -> str:
    """b - a over the seeds that both have: mean difference, interval, paired t-test, effect size."""
    both = a[["seed", metric]].merge(b[["seed", metric]], on="seed", suffixes=("_a", "_b"))
    test = paired(both[f"{metric}_a"], both[f"{metric}_b"])
    if test.n == 0:
        return "missing"
    if test.n == 1:
        return f"{test.mean:+.2f} (one seed)"
    text = f"{test.mean:+.2f} over {test.n} pairs of seeds (95 % interval {test.low:+.2f} to {test.high:+.2f}"
    if test.t != test.t:  # all differences equal
        return f"{text})"
    return f"{text}; paired t({test.n - 1}) = {test.t:.2f}, p = {test.p:.2g}, effect size d = {test.effect:+.2f})"


# any methods -------------------------------------------------------------------------------------


def comparison(df: pd.DataFrame, name: str = "comparison", title: str = "") -> Table:
    """One row a method over its finished runs, all of one setting; below it, what is not done."""
    groups = methods(df)
    finished = {label: runs[runs["state"] == "done"] for label, runs in groups.items()}
    rows = [[label, *_cells(runs)] for label, runs in finished.items()]
    notes = [_caption([len(runs) for runs in finished.values()])]
    missing = [
        f"{run.state} {run.id} ({label} seed={run.seed})"
        for label, runs in groups.items()
        for run in runs[runs["state"] != "done"].itertuples()
    ]
    if missing:
        notes.append(f"Not done, not counted: {', '.join(missing)}.")
    shared = [
        record.id for runs in finished.values() for record in runs["record"] if record.meta.get("together", 1) > 1
    ]
    if shared:
        notes.append(f"Shared their device with other seeds, whose seconds are in theirs: {', '.join(shared)}.")
    return Table(name, title or describe_setting(df), COMPARISON, rows, notes)


def _cells(runs: pd.DataFrame) -> list[str]:
    if runs.empty:
        return ["0"] + ["–"] * (len(COMPARISON) - 2)
    error, ce = summarize(runs["test_error"]), summarize(runs["test_ce"])
    norms = f"{runs['norm_mean'].mean():.3f} ({runs['norm_min'].min():.3f}–{runs['norm_max'].max():.3f})"
    return [str(error.n), best_and_spread(error), interval(error), _spread(ce), norms, f"{runs['seconds'].mean():.0f}"]


def _caption(counts: list[int]) -> str:
    n = f"{counts[0]}" if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    spread = "; ± is the sample standard deviation over seeds, the interval Student's t" if max(counts) > 1 else ""
    return f"Last epoch; best means the best seed. Finished runs a method: n = {n}{spread}."


# cells -------------------------------------------------------------------------------------------


def best_and_mean(best: float | None, mean: float | None) -> str:
    """As the paper prints it: 6.32 (6.568), – (7.56)."""
    return f"{_number(best)} ({_number(mean)})"


def best_and_spread(error: Summary) -> str:
    return f"{error.best:.2f} ({error.mean:.2f} ± {error.sd:.2f})" if error.n > 1 else f"{error.best:.2f}"


def interval(error: Summary) -> str:
    # an error below 0 is impossible: the interval loses nothing by ending there
    return f"{max(error.low, 0):.2f} to {error.high:.2f}" if error.n > 1 else "–"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _spread(ce: Summary) -> str:
    return f"{ce.mean:.4f} ± {ce.sd:.4f}" if ce.n > 1 else f"{ce.mean:.4f}"
