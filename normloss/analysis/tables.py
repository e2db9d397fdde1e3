"""Tables of numbers: the paper's rows beside ours, any methods side by side, and points over a config key."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

from normloss.analysis.figures import named
from normloss.analysis.findings import paired_by_seed
from normloss.analysis.paper import PaperTable
from normloss.analysis.paper import Row as PaperRow
from normloss.analysis.render import NOTHING, Column, Row, Table, between, number, plain, probability
from normloss.analysis.select import as_number, describe_setting, done, in_tf32, series, tell_diverged, value_of
from normloss.analysis.stats import FEWEST, Paired, Summary, summarize

RULES = "Errors at the last epoch; best is the lowest over seeds, never over epochs."
SPREAD = "±: sample standard deviation over seeds; interval: Student's t, from three seeds on; below, each seed."


# cells -------------------------------------------------------------------------------------------


def numbers(s: Summary) -> dict[str, Any]:
    """A column each; sd only where it is of three values or more."""
    few = s.n < FEWEST
    return {"n": s.n, "best": s.best, "mean": s.mean, "sd": math.nan if few else s.sd, "low": s.low, "high": s.high}


def best_and_spread(row: Row, missing: str = NOTHING) -> str:
    """6.40 (6.60 ± 0.16); of two seeds both values, 6.40, 6.71."""
    if not row["n"]:
        return missing
    if row["n"] < FEWEST:
        values = [row["best"]] if row["n"] == 1 else [row["best"], 2 * row["mean"] - row["best"]]
        return ", ".join(number(value, ".2f") for value in values)
    return f"{row['best']:.2f} ({row['mean']:.2f} ± {row['sd']:.2f})"


def interval(row: Row) -> str:
    # of what is never below 0, such as an error, the interval loses nothing by ending there
    floor = 0.0 if row["best"] >= 0 else -math.inf
    return NOTHING if math.isnan(row["low"]) else between(max(row["low"], floor), row["high"])


def best_and_mean(row: Row) -> str:
    """As the paper prints it: 6.32 (6.568), – (7.56)."""
    return f"{number(row['paper_best'], 'g')} ({number(row['paper_mean'], 'g')})"


# the paper's tables ------------------------------------------------------------------------------


def paper_table(table: PaperTable, df: pd.DataFrame) -> Table:
    """One of the paper's tables with our runs beside its numbers, nl against wd by seed, and what fills it."""
    top = "top1" in table.rows[0].values
    rows = [_top_row(row, df) if top else _row(row, df, table) for row in table.rows]
    notes = [f"{RULES} {SPREAD} Δ: ours − the paper's. p: nl against wd of ours, paired by seed."]
    notes += ["*: not run by the paper but quoted from [n].", *_against_wd(table, df)]
    if any(row["tf32"] for row in rows):
        notes.append("†: convolutions and matrix products in TF32, the rest in float32 (D21).")
    ours = [row.cell.runs(df) for row in table.rows if row.cell]
    notes += filter(None, [tell_diverged(pd.concat(ours), ["model.name"])])
    return Table(table.name, table.title, TOP if top else PAPERS, rows, notes, [*_missing(table, df)], left=2)


def _of_ours(head: str, show: Callable[[Row], str], none: str = "") -> Column:
    """`none` where the row above is the same setting."""
    return Column(head, lambda row: none if row["n"] is None else show(row))


def _marked(text: str, row: Row) -> str:
    return f"{text}†" if row["tf32"] else text


PAPERS = (
    plain("model"),
    Column("method", lambda row: _method(row)),
    Column("paper, best (mean)", best_and_mean),
    _of_ours("ours, best (mean ± sd)", lambda row: _marked(best_and_spread(row, "missing"), row), "as wd above"),
    _of_ours("n", lambda row: f"{row['n']} of {row['seeds']}"),
    _of_ours("Δ mean", lambda row: number(row["difference"], "+.2f")),
    _of_ours("95 % interval of our mean", interval),
    _of_ours("p", lambda row: probability(row["p"])),
)


def _row(row: PaperRow, df: pd.DataFrame, table: PaperTable) -> dict[str, Any]:
    of = {"model": row.model, "method": row.method, "quoted": row.quoted}
    theirs = {"paper_best": row.values.get("best"), "paper_mean": row.values.get("mean")}
    if row.cell is None:
        none = ("n", "best", "mean", "sd", "low", "high", "seeds", "difference", "p", "tf32")
        return of | theirs | dict.fromkeys(none)
    runs = row.cell.done(df)
    ours = summarize(runs["test_error"])
    p = math.nan if row.method == "wd" else _paired(runs, table.row(row.model, "wd").done(df)).p
    told = {"seeds": table.seeds, "difference": ours.mean - row.values["mean"], "p": p, "tf32": in_tf32(runs)}
    return of | theirs | numbers(ours) | told


def _paired(runs: pd.DataFrame, wd: pd.DataFrame) -> Paired:
    """By seed, of runs in one precision; none where they are not."""
    return paired_by_seed(runs, wd if in_tf32(runs) == in_tf32(wd) else wd.iloc[:0])


TOP = (
    plain("model"),
    Column("method", lambda row: _method(row)),
    plain("paper_top1", "paper, top-1", "g"),
    Column("ours, top-1", lambda row: _known(row, "top1")),
    plain("difference_top1", "Δ top-1", "+.2f"),
    plain("paper_top5", "paper, top-5", "g"),
    Column("ours, top-5", lambda row: _known(row, "top5")),
    plain("difference_top5", "Δ top-5", "+.2f"),
    _of_ours("n", lambda row: str(row["n"])),
)


def _top_row(row: PaperRow, df: pd.DataFrame) -> dict[str, Any]:
    runs = row.cell.done(df) if row.cell else None
    told: dict[str, Any] = {"model": row.model, "method": row.method, "quoted": row.quoted}
    told |= {"n": None if runs is None else len(runs), "tf32": runs is not None and in_tf32(runs)}
    for key, metric in (("top1", "test_error"), ("top5", "test_error_top5")):
        theirs, ours = row.values.get(key), None if runs is None else summarize(runs[metric]).mean
        difference = math.nan if ours is None or theirs is None else ours - theirs
        told |= {f"paper_{key}": theirs, key: ours, f"difference_{key}": difference}
    return told


def _known(row: Row, key: str) -> str:
    return "as wd above" if row["n"] is None else _marked(number(row[key], ".2f"), row) if row["n"] else "missing"


def _method(row: Row) -> str:
    return f"{row['method']} [{row['quoted']}]*" if row["quoted"] else row["method"]


def _against_wd(table: PaperTable, df: pd.DataFrame) -> Iterable[str]:
    """nl - wd of each network, in the paper and in ours."""
    for model in dict.fromkeys(row.model for row in table.rows):
        test = _paired(*(table.row(model, method).done(df) for method in ("nl", "wd")))
        yield f"{model}, nl − wd: the paper {number(table.difference(model), '+.3f')}; ours {spell_test(test)}."


def spell_test(test: Paired) -> str:
    """Mean difference, interval, paired t-test, effect size; of fewer than three pairs the differences alone."""
    if test.n == 0:
        return "missing"
    if test.n < FEWEST:
        return f"{', '.join(number(value, '+.2f') for value in test.values)} (n = {test.n}, no interval)"
    ends = between(test.low, test.high, "+.2f")
    text = f"{number(test.mean, '+.2f')} over {test.n} pairs of seeds (95 % interval {ends}"
    if math.isnan(test.t):  # all differences equal
        return f"{text})"
    t, effect = number(test.t, ".2f"), number(test.effect, "+.2f")
    return f"{text}; paired t({test.n - 1}) = {t}, p = {probability(test.p)}, effect size d = {effect})"


def _missing(table: PaperTable, df: pd.DataFrame) -> Iterable[str]:
    for row in table.rows:
        if row.cell and (seeds := row.cell.missing(df, table.seeds)):
            method = _method({"method": row.method, "quoted": row.quoted})
            yield f"{row.model} {method}, {len(seeds)} missing: `{row.cell.command(seeds, df)}`"


# any methods -------------------------------------------------------------------------------------


def comparison(
    df: pd.DataFrame, name: str = "comparison", title: str = "", by: Iterable[str] = (), timed: bool = False
) -> Table:
    """One row per method over its finished runs; those of one setting but for reg, seed and the keys in `by`.

    timed: with the seconds of a run, which are those of some machine.
    """
    groups = {label: done(runs) for label, runs in series(df, [], by).items()}
    wd = next((runs for label, runs in groups.items() if label.split()[0] == "wd"), df.iloc[:0])
    rows = [_compared(label, runs, wd) for label, runs in groups.items()]
    if timed:
        rows = [row | {"seconds": groups[row["method"]]["seconds"].mean()} for row in rows]
    counts = [row["n"] for row in rows]
    notes = [f"{RULES} {SPREAD if max(counts, default=0) > 1 else 'One seed.'}"]
    if any(not math.isnan(row["p"]) for row in rows):
        notes.append(f"p: against {next(iter(label for label in groups if label.split()[0] == 'wd'))}, paired by seed.")
    notes += filter(None, [tell_diverged(df, by)])
    columns = [column for column in COMPARED if column.head != "p" or len(wd)]
    columns += [plain("seconds", "s per run", ".0f")] if timed else []
    return Table(name, title or describe_setting(df), columns, rows, notes)


def _compared(label: str, runs: pd.DataFrame, wd: pd.DataFrame) -> dict[str, Any]:
    p = math.nan if label.split()[0] == "wd" or wd.empty or _doubled(wd) else paired_by_seed(runs, wd).p
    return {
        "method": label,
        **numbers(summarize(runs["test_error"])),
        "p": p,
        "test_ce": runs["test_ce"].mean(),
        "norm_mean": runs["norm_mean"].mean(),
        "norm_min": runs["norm_min"].min(),
        "norm_max": runs["norm_max"].max(),
    }


def _doubled(runs: pd.DataFrame) -> bool:
    return bool(runs["seed"].duplicated().any())


def _norms(row: Row) -> str:
    if not row["n"]:
        return NOTHING
    return f"{row['norm_mean']:.3f} ({row['norm_min']:.3f}–{row['norm_max']:.3f})"


COMPARED = (
    plain("method"),
    plain("n"),
    Column("test error %, best (mean ± sd)", best_and_spread),
    Column("95 % interval of the mean", interval),
    Column("p", lambda row: probability(row["p"])),
    plain("test_ce", "test cross entropy", ".4f"),
    Column("filter norm, mean (min–max)", _norms),
)


def points(df: pd.DataFrame, x: str, y: str, name: str, title: str, by: Iterable[str] = ()) -> Table:
    """One row per method and value of the config key x, in the order of the values, over its finished runs."""
    rows = []
    for label, runs in series(done(df), [x], by).items():
        values = value_of(runs, y)
        for value, places in sorted(runs.groupby([as_number(x, one) for one in runs[x]]).groups.items()):
            rows.append({"method": label, x: value, **numbers(summarize(values[places]))})
    columns = [
        plain("method"),
        plain(x, named(x), "g"),
        plain("n"),
        Column(f"{named(y)}, best (mean ± sd)", best_and_spread),
        Column("95 % interval of the mean", interval),
    ]
    notes = [f"{RULES} {SPREAD if max((row['n'] for row in rows), default=0) > 1 else 'One seed.'}"]
    notes += filter(None, [tell_diverged(df, [x, *by])])
    return Table(name, title, columns, rows, notes)
