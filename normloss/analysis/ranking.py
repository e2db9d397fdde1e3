"""What a comparison came to: each method's chosen setting, its test error over fresh seeds, and what that tells apart.

Tests are paired by seed. p-values are Holm's over the methods that are tested. Seeds repeat the training, not the
search: another draw of settings could choose otherwise.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normloss.analysis.render import Column, Table, between, number, plain, probability
from normloss.analysis.stats import Paired, Summary, paired, summarize
from normloss.runs.records import RunRecord, load_archive, load_runs
from normloss.sweeps.comparison import Comparison, Lookup, RunState, Tuned, judge

LEVEL = 0.05  # of the tests
BASELINES = ("wd", "none")  # in this order, unless one is named
NONE = Paired((), 0, *[math.nan] * 7)


@dataclass(frozen=True)
class Ranked:
    """A method whose settings are all tried."""

    tuned: Tuned
    finals: Mapping[int, float]  # seed -> test error, of the chosen setting
    step: float  # seconds of a step, evaluation included: mean over these runs
    spent: int  # trainings that ended, trials and finals
    diverged: int  # of the finals

    @property
    def method(self) -> str:
        return self.tuned.method

    @property
    def error(self) -> Summary:
        return summarize(self.finals.values())


@dataclass(frozen=True)
class Ranking:
    comparison: Comparison
    methods: list[Ranked]  # ascending mean test error, those without one last
    unfinished: list[Tuned]
    tuned: list[Tuned]  # all, in the comparison's order
    baseline: str | None
    against_baseline: Mapping[str, Paired] = field(default_factory=dict)
    p_baseline: Mapping[str, float] = field(default_factory=dict)  # Holm's
    p_best: Mapping[str, float] = field(default_factory=dict)  # against the lowest mean, Holm's

    @property
    def tested(self) -> list[Ranked]:
        return [ranked for ranked in self.methods if ranked.finals]

    @property
    def ended(self) -> int:
        """Trainings that came to an end."""
        return sum(ranked.spent for ranked in self.methods) + sum(one.ended for one in self.unfinished)

    @property
    def planned(self) -> int:
        """Trainings of the whole comparison."""
        return sum(
            sum(len(setting.trials) for setting in settings) + len(settings[0].finals)
            for settings in self.comparison.methods.values()
        )


def look_up(store: Path, results: Path) -> Lookup:
    """What a store and the archive in results/ have of a run, by its id; a run done in either is done."""
    runs: dict[str, RunRecord] = {run.id: run for run in load_runs(store)}
    runs |= {run.id: run for run in load_archive(results)}
    return lambda id: RunState(runs[id].state, runs[id].final) if id in runs else RunState()


def rank(comparison: Comparison, lookup: Lookup, baseline: str | None = None) -> Ranking:
    """The methods whose trials have all ended, by mean test error.

    baseline: what the others' differences are to; weight decay, else no regularization, where it is not given.
    """
    tuned = [judge(comparison, method, lookup) for method in comparison.methods]
    complete = [_ranked(one, lookup) for one in tuned if one.complete]
    complete.sort(key=lambda ranked: (not ranked.finals, ranked.error.mean if ranked.finals else 0.0))
    tested = {ranked.method: ranked.finals for ranked in complete if ranked.finals}
    baseline = baseline or next((name for name in BASELINES if name in comparison.methods), None)
    baseline = baseline if baseline in tested else None
    against, above = _against(baseline, tested), _against(next(iter(tested), None), tested)
    return Ranking(
        comparison=comparison,
        methods=complete,
        unfinished=[one for one in tuned if not one.complete],
        tuned=tuned,
        baseline=baseline,
        against_baseline=against,
        p_baseline=holm({name: test.p for name, test in against.items()}),
        p_best=holm({name: test.p for name, test in above.items()}),
    )


def _ranked(tuned: Tuned, lookup: Lookup) -> Ranked:
    chosen = tuned.chosen
    finals = [(run.seed, lookup(run.id)) for run in chosen.setting.finals] if chosen else []
    done = {seed: seen.final for seed, seen in finals if seen.state == "done" and seen.final}
    diverged = sum(seen.state == "diverged" for _, seen in finals)
    steps = [final["seconds"] / final["steps"] for final in done.values() if final.get("steps")]
    return Ranked(
        tuned,
        {seed: final["test_error"] for seed, final in done.items()},
        sum(steps) / len(steps) if steps else math.nan,
        tuned.ended + len(done) + diverged,
        diverged,
    )


def _against(one: str | None, tested: Mapping[str, Mapping[int, float]]) -> dict[str, Paired]:
    """Every other method's test against one."""
    return {name: _paired(tested[one], finals) for name, finals in tested.items() if name != one} if one else {}


def _paired(a: Mapping[int, float], b: Mapping[int, float]) -> Paired:
    """b - a over the seeds that both have."""
    both = sorted(a.keys() & b.keys())
    return paired([a[seed] for seed in both], [b[seed] for seed in both])


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values: max over j <= i of min(1, (m - j) p_(j)), p ascending and j from 0; NaN is no test."""
    known = sorted((value, name) for name, value in p.items() if not math.isnan(value))
    adjusted, highest = dict.fromkeys(p, math.nan), 0.0
    for j, (value, name) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - j) * value))
        adjusted[name] = highest
    return adjusted


# the table ---------------------------------------------------------------------------------------


def table(ranking: Ranking) -> Table:
    base = ranking.baseline or "baseline"
    columns = (
        plain("method"),
        plain("chosen"),
        Column("settings tried", _tried),
        plain("val_error", "validation error %", ".2f"),
        Column("test error %, mean ± sd", lambda row: _spread(row, "test_error_mean", "test_error_sd")),
        plain("n"),
        Column("95 % interval", lambda row: between(row["test_error_low"], row["test_error_high"])),
        plain("difference", f"minus {base}", "+.2f"),
        Column("95 % interval of it", lambda row: between(row["difference_low"], row["difference_high"], "+.2f")),
        Column("p (Holm)", lambda row: probability(row["p_holm"])),
        Column("ms per step", lambda row: number(1000 * row["seconds_per_step"], ".1f")),
        plain("trainings"),
    )
    rows = [_row(ranking, ranked) for ranked in ranking.methods]
    comparison = ranking.comparison
    title = f"Methods compared on {comparison.title}; {_held_out(comparison)} held out to choose by."
    title += f" {apart(ranking)}" if ranking.tested else ""
    return Table(comparison.name, title, columns, rows, list(sentences(ranking)), left=2)


def _row(ranking: Ranking, ranked: Ranked) -> dict[str, Any]:
    error, best = ranked.error, ranked.tuned.chosen
    test = ranking.against_baseline.get(ranked.method, NONE)
    return {
        "method": ranked.method,
        "trials": len(ranked.tuned.settings),
        "trials_diverged": ranked.tuned.diverged,
        "chosen": str(best.setting) if best else "–",
        "lr": best.setting.values.get("train.lr", math.nan) if best else math.nan,
        "lam": best.setting.values.get("reg.lam", math.nan) if best else math.nan,
        "val_error": best.error if best else math.nan,
        "test_error_mean": error.mean,
        "test_error_sd": error.sd,
        "n": error.n,
        "finals_diverged": ranked.diverged,
        "test_error_low": max(error.low, 0.0) if error.low == error.low else math.nan,
        "test_error_high": error.high,
        "baseline": ranking.baseline or "",
        "difference_n": test.n,
        "difference": test.mean,
        "difference_low": test.low,
        "difference_high": test.high,
        "p": test.p,
        "p_holm": ranking.p_baseline.get(ranked.method, math.nan),
        "p_best_holm": ranking.p_best.get(ranked.method, math.nan),
        "seconds_per_step": ranked.step,
        "trainings": ranked.spent,
    }


def _tried(row: Mapping[str, Any]) -> str:
    diverged = row["trials_diverged"]
    return f"{row['trials']}, {diverged} diverged" if diverged else str(row["trials"])


def _spread(row: Mapping[str, Any], mean: str, sd: str) -> str:
    text = number(row[mean], ".2f")
    return text if math.isnan(row[sd]) else f"{text} ± {row[sd]:.2f}"


def _held_out(comparison: Comparison) -> str:
    return "its own images" if comparison.held_out == "file" else f"{comparison.held_out} training images"


# in words ----------------------------------------------------------------------------------------


def sentences(ranking: Ranking) -> Iterable[str]:
    """What is missing, what diverged, and how to read the numbers."""
    if ranking.unfinished:
        count, total = len(ranking.methods), len(ranking.tuned)
        left = "; ".join(f"{one.method}: {one.why}" for one in ranking.unfinished)
        yield f"Ranked: {count} of {total} methods, those whose settings are all tried. Not yet: {left}."
    for one in ranking.tuned:
        if one.diverged:
            yield f"{one.method}: {one.diverged} of {len(one.settings)} settings diverged."
    for ranked in ranking.methods:
        wanted = len(ranked.tuned.chosen.setting.finals) if ranked.tuned.chosen else 0
        if ranked.diverged:
            yield f"{ranked.method}: {ranked.diverged} of {wanted} runs of the chosen setting diverged, not counted."
        if to_do := wanted - ranked.diverged - len(ranked.finals):
            yield f"{ranked.method}: {to_do} of {wanted} runs of the chosen setting are to be done."
    edges = [f"{ranked.method} ({', '.join(keys)})" for ranked in ranking.methods if (keys := at_edge(ranked))]
    if edges:
        yield f"Chosen at the lowest or highest value tried, so that a better one may lie beyond: {', '.join(edges)}."
    yield (
        "Settings are chosen by the validation error of the last epoch, never by the test set. ±: sample standard"
        " deviation over seeds; intervals: Student's t; p: paired t-test by seed, Holm's correction over the methods."
        " Seeds repeat the training of the chosen setting, not the search."
    )


def apart(ranking: Ranking) -> str:
    """Which methods cannot be told from the best one."""
    best, *others = ranking.tested
    text = f"{best.method} has the lowest mean test error, {best.error.mean:.2f} % (n = {best.error.n})."
    same = [one.method for one in others if ranking.p_best[one.method] >= LEVEL]
    higher = [one.method for one in others if ranking.p_best[one.method] < LEVEL]
    untested = [one.method for one in others if math.isnan(ranking.p_best[one.method])]
    if same:
        text += f" Cannot be told apart from it (p ≥ {LEVEL:g} after Holm's correction): {', '.join(same)}."
    if higher:
        text += f" Higher than it (p < {LEVEL:g}): {', '.join(higher)}."
    if untested:
        text += f" Not tested against it (fewer than three seeds in common, or equal): {', '.join(untested)}."
    return text


def at_edge(ranked: Ranked) -> list[str]:
    """The keys of which the chosen value is the lowest or highest that was tried, with their values."""
    best = ranked.tuned.chosen
    if best is None or len(ranked.tuned.settings) < 3:
        return []
    found = []
    for key, value in best.setting.values.items():
        tried = [judged.setting.values[key] for judged in ranked.tuned.settings]
        if value in (min(tried), max(tried)):
            found.append(f"{key}={value:g}")
    return found
