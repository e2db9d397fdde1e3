"""Tables of numbers: the paper's rows and ours, any methods, points over a config key, and the paper's claims."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from normloss.analysis.commands import command_of
from normloss.analysis.entries import Methods, Points
from normloss.analysis.figures import named
from normloss.analysis.findings import Finding
from normloss.analysis.paper import Claim, PaperRow, PaperTable
from normloss.analysis.render import NOTHING, Column, Row, Table, between, number, plain, probability
from normloss.analysis.select import by_number, describe_diverged, describe_setting, done, in_tf32, series, value_of
from normloss.analysis.stats import FEWEST, Paired, Summary, paired, summarize

RULES = "Errors at the last epoch; best is the lowest over seeds, never over epochs."
SPREAD = "±: sample standard deviation over seeds; interval: Student's t. Fewer than three seeds are shown one by one."


# cells -------------------------------------------------------------------------------------------


def numbers(s: Summary) -> dict[str, Any]:
    """Return a column for each number of a summary; sd only with three values or more."""
    few = s.n < FEWEST
    return {"n": s.n, "best": s.best, "mean": s.mean, "sd": math.nan if few else s.sd, "low": s.low, "high": s.high}


def best_and_spread(row: Row, missing: str = NOTHING) -> str:
    """Return 6.40 (6.60 ± 0.16); of two seeds both values, 6.40, 6.71."""
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


# the paper's tables ------------------------------------------------------------------------------


def paper_table(table: PaperTable, df: pd.DataFrame) -> Table:
    """Return one of the paper's tables with our runs next to its numbers, nl against wd by seed, and what fills it."""
    top = "top1" in table.rows[0].values
    rows = [_top_row(row, df) if top else _paper_row(row, df, table) for row in table.rows]
    notes = [f"{RULES} {SPREAD} Δ: ours − the paper's. p: nl against wd of ours, paired by seed."]
    notes.append("*: not run by the paper but quoted from [n].")
    for model in dict.fromkeys(row.model for row in table.rows):
        test = _paired(*(table.row(model, method).done(df) for method in ("nl", "wd")))
        notes.append(f"{model}, nl − wd: the paper {number(table.difference(model), '+.3f')}; ours {spell_test(test)}.")
    if any(row["tf32"] for row in rows):
        notes.append("†: convolutions and matrix products in TF32, the rest in float32 (D21).")
    ours = [row.cell.runs(df) for row in table.rows if row.cell]
    notes += filter(None, [describe_diverged(pd.concat(ours), ["model.name"])])
    commands = [
        f"{row.model} {_starred(row.method, row.quoted)}, {len(seeds)} missing: `{row.cell.command(seeds, df)}`"
        for row in table.rows
        if row.cell and (seeds := row.cell.missing(df, table.seeds))
    ]
    columns = TOP_COLUMNS if top else PAPER_COLUMNS
    return Table(table.name, table.title, columns, rows, notes, commands, left=2, of="test_error")


def _paper_row(row: PaperRow, df: pd.DataFrame, table: PaperTable) -> dict[str, Any]:
    runs, best, mean = row.done(df), row.values.get("best"), row.values.get("mean", math.nan)
    found: dict[str, Any] = {"model": row.model, "method": row.method, "quoted": row.quoted}
    ours = summarize(runs["test_error"])
    found |= {"paper_best": best, "paper_mean": mean, **numbers(ours), "seeds": table.seeds}
    p = math.nan if row.method == "wd" else _paired(runs, table.row(row.model, "wd").done(df)).p
    found |= {"difference": ours.mean - mean, "p": p, "tf32": in_tf32(runs)}
    return found if row.cell else found | {"n": None, "seeds": None, "tf32": None, "without": row.without}


def _top_row(row: PaperRow, df: pd.DataFrame) -> dict[str, Any]:
    runs = row.done(df)
    found: dict[str, Any] = {"model": row.model, "method": row.method, "quoted": row.quoted}
    found |= {"n": len(runs), "tf32": in_tf32(runs)}
    for key, metric in (("top1", "test_error"), ("top5", "test_error_top5")):
        theirs, ours = row.values.get(key, math.nan), summarize(runs[metric]).mean
        found |= {f"paper_{key}": theirs, key: ours, f"difference_{key}": ours - theirs}
    return found if row.cell else found | {"n": None, "without": row.without}


def _paired(runs: pd.DataFrame, wd: pd.DataFrame) -> Paired:
    """Return the test by seed of runs in one precision; of none where they are not."""
    wd = wd if in_tf32(runs) == in_tf32(wd) else wd.iloc[:0]
    return paired(*(some.set_index("seed")["test_error"] for some in (wd, runs)))


def spell_test(test: Paired) -> str:
    """Return mean difference, interval, paired t-test and effect size; of fewer than three pairs the differences."""
    if not test.n:
        return "missing"
    if test.n < FEWEST:
        return f"{', '.join(number(value, '+.2f') for value in test.values)} (n = {test.n}, no interval)"
    ends = between(test.low, test.high, "+.2f")
    text = f"{number(test.mean, '+.2f')} over {test.n} pairs of seeds (95 % interval {ends}"
    if math.isnan(test.t):  # all differences equal
        return f"{text})"
    t, effect = number(test.t, ".2f"), number(test.effect, "+.2f")
    return f"{text}; paired t({test.n - 1}) = {t}, p = {probability(test.p)}, effect size d = {effect})"


def _starred(method: str, quoted: int | None) -> str:
    return f"{method} [{quoted}]*" if quoted else method


def _of_ours(head: str, show: Callable[[Row], str], first: bool = False) -> Column:
    """Return a column of our runs; empty where there are none by design, the first one saying why."""
    return Column(head, lambda row: (row["without"] if first else "") if row["n"] is None else show(row))


def _marked(text: str, row: Row) -> str:
    return f"{text}†" if row["tf32"] else text


def _top(key: str) -> Column:
    show = lambda row: _marked(number(row[key], ".2f"), row) if row["n"] else "missing"  # noqa: E731
    return _of_ours(f"ours, {key.replace('top', 'top-')}", show, first=True)


PAPER_COLUMNS = (
    plain("model"),
    Column("method", lambda row: _starred(row["method"], row["quoted"])),
    Column("paper, best (mean)", lambda row: f"{number(row['paper_best'], 'g')} ({number(row['paper_mean'], 'g')})"),
    _of_ours("ours, best (mean ± sd)", lambda row: _marked(best_and_spread(row, "missing"), row), first=True),
    _of_ours("n", lambda row: f"{row['n']} of {row['seeds']}"),
    _of_ours("Δ mean", lambda row: number(row["difference"], "+.2f")),
    _of_ours("95 % interval of our mean", interval),
    _of_ours("p", lambda row: probability(row["p"])),
)
TOP_COLUMNS = (
    plain("model"),
    Column("method", lambda row: _starred(row["method"], row["quoted"])),
    plain("paper_top1", "paper, top-1", "g"),
    _top("top1"),
    plain("difference_top1", "Δ top-1", "+.2f"),
    plain("paper_top5", "paper, top-5", "g"),
    _top("top5"),
    plain("difference_top5", "Δ top-5", "+.2f"),
    _of_ours("n", lambda row: str(row["n"])),
)


# any methods -------------------------------------------------------------------------------------


def methods(df: pd.DataFrame, entry: Methods) -> Table:
    """Return one row per method over its finished runs of one setting but for reg, seed and the keys in `entry.by`."""
    groups = {label: done(runs) for label, runs in series(df, [], entry.by).items()}
    baseline = next((label for label in groups if label.split()[0] == "wd"), None)
    wd = groups[baseline] if baseline else df.iloc[:0]
    kept = [column for column in METHOD_COLUMNS if column.head != "p" or len(wd)]
    if wd["seed"].duplicated().any():  # more than one network or data set
        wd = wd.iloc[:0]
    rows, trained = [], []
    for label, runs in groups.items():
        test = math.nan if label.split()[0] == "wd" or wd.empty else _paired(runs, wd).p
        ours: dict[str, Any] = {"method": label, **numbers(summarize(runs["test_error"])), "p": test}
        of_norms = {"norm_mean": runs["norm_mean"].mean(), "norm_min": runs["norm_min"].min()}
        rows.append(ours | {"test_ce": runs["test_ce"].mean()} | of_norms | {"norm_max": runs["norm_max"].max()})
        trained += trained_by(runs, f"{label}: ")
    notes = _notes(df, rows, entry.by)
    if any(not math.isnan(row["p"]) for row in rows):
        notes.insert(1, f"p: against {baseline}, paired by seed.")
    title = entry.title or describe_setting(df)
    return Table(entry.name, title, _headed(kept, rows), rows, notes, trained=trained, of="test_error")


NORMS = "{norm_mean:.3f} ({norm_min:.3f}–{norm_max:.3f})"
METHOD_COLUMNS = (
    plain("method"),
    plain("n"),
    Column("test error %", best_and_spread),
    Column("95 % interval of the mean", interval),
    Column("p", lambda row: probability(row["p"])),
    plain("test_ce", "test cross entropy", ".4f"),
    Column("filter norm, mean (min–max)", lambda row: NORMS.format(**row) if row["n"] else NOTHING),
)


def points(df: pd.DataFrame, entry: Points) -> Table:
    """Return one row per method and value of the config key x, in the order of the values, over its finished runs."""
    rows, trained = [], []
    for label, runs in series(done(df), [entry.x], entry.by).items():
        values = value_of(runs, entry.y)
        for value, places in by_number(runs, entry.x).items():
            rows.append({"method": label, entry.x: value, **numbers(summarize(values[places]))})
            trained += trained_by(runs.loc[places], f"{label}, {named(entry.x)} {value:g}: ")
    columns = [
        plain("method"),
        plain(entry.x, named(entry.x), "g"),
        plain("n"),
        Column(named(entry.y), best_and_spread),
        Column("95 % interval of the mean", interval),
    ]
    notes = _notes(df, rows, [entry.x, *entry.by])
    return Table(entry.name, entry.title, _headed(columns, rows), rows, notes, trained=trained, of=entry.y)


def trained_by(runs: pd.DataFrame, row: str = "") -> list[str]:
    """Return a line for each setting of runs: the command that trains them, and their ids."""
    settings = [some.sort_values("seed") for _, some in runs.groupby("setting_id", sort=False)]
    return [f"{row}`{command_of(some['record'])}` trains {', '.join(some['id'])}" for some in settings]


def _headed(columns: Sequence[Column], rows: list[dict[str, Any]]) -> list[Column]:
    """Return the columns with what stands in the cells of `best_and_spread`: a statistic, or each seed."""
    many, few = (any(test(row["n"]) for row in rows) for test in (lambda n: n >= FEWEST, lambda n: 0 < n < FEWEST))
    what = "best (mean ± sd)" if many and not few else "each seed" if not many else "best (mean ± sd) or each seed"
    return [replace(one, head=f"{one.head}, {what}") if one.show is best_and_spread else one for one in columns]


def _notes(df: pd.DataFrame, rows: list[dict[str, Any]], keys: list[str]) -> list[str]:
    spread = SPREAD if max((row["n"] for row in rows), default=0) > 1 else "One seed."
    return [f"{RULES} {spread}", *filter(None, [describe_diverged(df, keys)])]


# what the paper claims ---------------------------------------------------------------------------


def claims(found: Mapping[str, list[tuple[str, Finding]]], stated: Iterable[Claim]) -> Table:
    """Return what the paper's text claims and what our findings say to it, one row per finding or one that is missing.

    found: claim -> (title of the study, finding).
    """
    rows = []
    for claim in stated:
        of = {"claim": claim.says, "section": claim.section, "paper": claim.number, "note": claim.note}
        if not found.get(claim.name):
            nothing = dict.fromkeys(("value", "low", "high", "p"), math.nan)
            rows.append({**of, "where": None, "ours": claim.elsewhere, "n": 0, **nothing, "verdict": "not tested"})
        for title, each in found.get(claim.name, []):
            ours = {"where": title, "ours": f"{each.what}: {each.result}"}
            test = {key: getattr(each, key) for key in ("n", "value", "low", "high", "p")}
            rows.append({**of, **ours, **test, "verdict": each.against(claim.expected, claim.sign)})
    notes = [
        "Holds: the 95 % interval lies on the claimed side of the value in the claim. Does not hold: it lies on the"
        " other side. Inconclusive: it contains the value, or n is below 3. Unfinished: n is below the study's plan."
        " Not tested: no finished runs. A study at small scale tests the claim at that scale, not in the paper's"
        " setting."
    ]
    return Table("claims", "The paper's claims", CLAIM_COLUMNS, rows, notes, left=5)


CLAIM_COLUMNS = (
    plain("claim", "the paper says"),
    plain("section"),
    plain("paper", "the paper's number"),
    plain("where", "our study"),
    Column("ours", lambda row: "; ".join(filter(None, [row["ours"], row["note"]])) or NOTHING),
    plain("n"),
    Column("95 % interval", lambda row: between(row["low"], row["high"], "+.2f")),
    Column("p", lambda row: probability(row["p"])),
    plain("verdict"),
)
