"""The outcome of a tuning comparison: each method's chosen setting, its test error over fresh seeds, and their tests.

Tests are paired by seed, against one baseline that is fixed before anything is trained; p-values are Holm's over all
methods that were asked for, trained or not. Seeds repeat the training, not the search: another draw of settings could
choose otherwise.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from normloss.analysis.render import Column, Table, between, number, plain, probability
from normloss.analysis.select import done, gather
from normloss.analysis.stats import Paired, Summary, paired, summarize
from normloss.analysis.study import BASELINES
from normloss.config import CONFIGS
from normloss.errors import UserError
from normloss.runs.records import RunRecord
from normloss.sweeps import comparison, tuning
from normloss.sweeps.comparison import Comparison, Lookup, RunState, Tuned, judge

LEVEL = 0.05  # of the tests
QUESTION = "Which regularizer, where each is tuned alike on images held out of training?"
NONE = Paired((), 0, *[math.nan] * 7)


@dataclass(frozen=True)
class Ranked:
    """A method whose settings are all tried."""

    tuned: Tuned
    finals: Mapping[int, float]  # seed -> test error, of the chosen setting
    diverged: int  # of the runs of the chosen setting

    @property
    def method(self) -> str:
        return self.tuned.method

    @property
    def error(self) -> Summary:
        return summarize(self.finals.values())

    @property
    def ended(self) -> int:
        """Trainings that came to an end, of trials and of the chosen setting."""
        return self.tuned.ended + len(self.finals) + self.diverged


@dataclass(frozen=True)
class Ranking:
    comparison: Comparison
    methods: list[Ranked]  # ascending mean test error, those without one last
    tuned: list[Tuned]  # all, in the comparison's order
    baseline: str
    tests: Mapping[str, Paired]  # of the others against the baseline, as far as both are done
    p: Mapping[str, float]  # Holm's, of these

    @property
    def title(self) -> str:
        old = " by an earlier search, which drew rate and λ together" if self.comparison.of_one_stage else ""
        return f"Methods compared{old}, {self.comparison.title}"

    @property
    def tested(self) -> list[Ranked]:
        return [ranked for ranked in self.methods if ranked.finals]

    @property
    def unfinished(self) -> list[Tuned]:
        return [one for one in self.tuned if not one.complete]

    @property
    def ended(self) -> int:
        """Trainings that came to an end."""
        return sum(ranked.ended for ranked in self.methods) + sum(one.ended for one in self.unfinished)

    @property
    def planned(self) -> int:
        """Trainings of the whole comparison, as far as its rates are known; of an earlier search those that ended."""
        if self.comparison.of_one_stage:
            return self.ended
        return sum(
            len(settings[0].trials) * (len(settings) + self.comparison.to_come[method]) + len(settings[0].finals)
            for method, settings in self.comparison.methods.items()
        )

    @property
    def progress(self) -> str:
        ranked, asked = len(self.methods), len(self.tuned)
        return f"{ranked} of {asked} methods tried to the end, {self.ended} of {self.planned} trainings"


# which comparisons -------------------------------------------------------------------------------


def rankings(df: pd.DataFrame, results: Path | None = None) -> list[Ranking]:
    """Return the rankings that experiments ask for, and those of files in RESULTS/comparisons, which hold earlier ones.

    Without those of which no method is tried to the end.
    """
    if "dataset.val" not in df or (done(df)["dataset.val"] == 0).all():  # no trial: composing costs seconds
        return []
    files = sorted((CONFIGS / "experiment").glob("*.yaml"))
    names = [path.stem for path in files if "compare" in OmegaConf.load(path)]
    lookup = lookup_among(df["record"])
    asked = [tuning.Search([f"experiment={name}"]).comparison(lookup) for name in names]
    return _begun(df, [*asked, *(_stored(results) if results else [])])


def rankings_of_store(df: pd.DataFrame, store: Path) -> list[Ranking]:
    """Return the rankings that train.py compare=... wrote to a store, without those of an experiment."""
    return _begun(df, [one for one in _stored(store) if not any(word.startswith("experiment=") for word in one.words)])


def _stored(store: Path) -> list[Comparison]:
    return [comparison.read(path) for path in sorted((store / comparison.FOLDER).glob("*.json"))]


def find(words: list[str], store: Path | None, results: Path) -> tuple[Comparison, Lookup]:
    """Return the comparison of a command's words or of a file, by default the store's only one, and its runs' states.

    store: the runs, with those archived in `results`; None: the command's, or that of the file.
    """
    if any("=" in word for word in words):
        if not tuning.asked(words):
            raise UserError(f"{' '.join(words)}: must be the words of a comparison: compare=..., or such an experiment")
        search = tuning.Search(words)
        lookup = lookup_among(gather(store or search.store, results))
        return search.comparison(lookup), lookup
    folder = (store or Path("results/runs")) / comparison.FOLDER
    files = [Path(word) for word in words] or sorted(folder.glob("*.json"))
    if len(files) != 1:
        there = f"; there are: {' '.join(map(str, files))}" if files else ""
        raise UserError(f"{folder}: must hold one comparison where none is named, got {len(files)}{there}")
    return comparison.read(files[0]), lookup_among(gather(store or files[0].absolute().parent.parent, results))


def _begun(df: pd.DataFrame, asked: list[Comparison]) -> list[Ranking]:
    found = [rank(one, lookup_among(df["record"])) for one in asked]
    return [ranking for ranking in found if ranking.methods]


def lookup_among(runs: Iterable[RunRecord]) -> Lookup:
    """Return what gives a run's state and final metrics by its id."""
    seen = {run.id: RunState(run.state, run.final) for run in runs}
    return lambda id: seen.get(id, RunState())


# ranking -----------------------------------------------------------------------------------------


def rank(comparison: Comparison, lookup: Lookup, baseline: str | None = None) -> Ranking:
    """Return the methods whose trials have all ended, by mean test error.

    baseline: what the others are tested against; weight decay, else no regularization, else the first method, where it
    is not given. Raises UserError for a method that is not compared.
    """
    if baseline and baseline not in comparison.methods:
        raise UserError(f"--baseline: must be one of {' '.join(comparison.methods)}, got {baseline!r}")
    tuned = [judge(comparison, method, lookup) for method in comparison.methods]
    complete = [_ranked(one, lookup) for one in tuned if one.complete]
    complete.sort(key=lambda ranked: (not ranked.finals, ranked.error.mean if ranked.finals else 0.0))
    names = [*comparison.methods]
    baseline = baseline or next((name for name in BASELINES if name in names), names[0])
    finals = {ranked.method: ranked.finals for ranked in complete if ranked.finals}
    tests = {
        name: _paired(finals[baseline], finals[name]) for name in finals if name != baseline and baseline in finals
    }
    return Ranking(
        comparison, complete, tuned, baseline, tests, holm({name: t.p for name, t in tests.items()}, len(names) - 1)
    )


def refuse_nothing_tried(ranking: Ranking) -> None:
    if not ranking.methods:
        far = "; ".join(f"{tuned.method}: {tuned.why}" for tuned in ranking.unfinished)
        asked = ranking.comparison
        raise UserError(f"no method of {asked.name} is tried yet ({far}); to go on: {asked.command}")


def _ranked(tuned: Tuned, lookup: Lookup) -> Ranked:
    seen = {run.seed: lookup(run.id) for run in tuned.chosen.setting.finals} if tuned.chosen else {}
    finals = {seed: one.final for seed, one in seen.items() if one.state == "done" and one.final}
    errors = {seed: final["test_error"] for seed, final in finals.items()}
    diverged = sum(one.state == "diverged" for one in seen.values())
    return Ranked(tuned, errors, diverged)


def _paired(one: Mapping[int, float], other: Mapping[int, float]) -> Paired:
    """Return the paired test of other - one over the seeds that both have."""
    both = sorted(one.keys() & other.keys())
    return paired([one[seed] for seed in both], [other[seed] for seed in both])


def holm(p: Mapping[str, float], family: int) -> dict[str, float]:
    """Return Holm's adjusted p-values: max over j <= i of min(1, (m - j) p_(j)), p ascending and j from 0.

    family: m, how many tests were planned. NaN is a test that could not be made: it counts in m as if it came last.
    """
    known = sorted((value, name) for name, value in p.items() if not math.isnan(value))
    adjusted, highest = dict.fromkeys(p, math.nan), 0.0
    for j, (value, name) in enumerate(known):
        highest = max(highest, min(1.0, (family - j) * value))
        adjusted[name] = highest
    return adjusted


# the table ---------------------------------------------------------------------------------------


def table(ranking: Ranking, bench: Path) -> Table:
    """Return the ranking's table; bench: the folder of what `scripts/bench.py overhead` measured."""
    columns = (
        plain("method"),
        plain("chosen"),
        Column("settings tried", _tried),
        plain("val_error", "validation error %", ".2f"),
        Column("test error %, mean ± sd", _spread),
        plain("n"),
        Column("95 % interval", lambda row: between(row["test_error_low"], row["test_error_high"])),
        plain("difference", f"minus {ranking.baseline}", "+.2f"),
        Column("95 % interval of it", lambda row: between(row["difference_low"], row["difference_high"], "+.2f")),
        Column("p (Holm)", lambda row: probability(row["p_holm"])),
        plain("trainings"),
    )
    rows = [_row(ranking, ranked) for ranked in ranking.methods]
    asked = ranking.comparison
    held_out = "its own images" if asked.held_out == "file" else f"{asked.held_out} training images"
    title = f"{ranking.title}; {held_out} held out to choose by."
    title += f" {headline(ranking)}" if ranking.tested else ""
    return Table(asked.name, title, columns, rows, list(notes(ranking, bench)), left=2)


def _row(ranking: Ranking, ranked: Ranked) -> dict[str, Any]:
    error, best = ranked.error, ranked.tuned.chosen
    test = ranking.tests.get(ranked.method, NONE)
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
        "baseline": ranking.baseline,
        "difference_n": test.n,
        "difference": test.mean,
        "difference_low": test.low,
        "difference_high": test.high,
        "p": test.p,
        "p_holm": ranking.p.get(ranked.method, math.nan),
        "trainings": ranked.ended,
    }


def _tried(row: Mapping[str, Any]) -> str:
    diverged = row["trials_diverged"]
    return f"{row['trials']}, {diverged} diverged" if diverged else str(row["trials"])


def _spread(row: Mapping[str, Any]) -> str:
    text = number(row["test_error_mean"], ".2f")
    return text if math.isnan(row["test_error_sd"]) else f"{text} ± {row['test_error_sd']:.2f}"


# in words ----------------------------------------------------------------------------------------


def notes(ranking: Ranking, bench: Path) -> Iterable[str]:
    """Yield what is missing, what diverged, and how to read the numbers."""
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
        f" deviation over seeds; intervals: Student's t; p: paired t-test by seed against {ranking.baseline}, Holm's"
        f" correction over all {len(ranking.tuned) - 1} other methods, tried or not. Seeds repeat the training of the"
        " chosen setting, not the search. Weight decay that a method keeps from its authors is not tuned."
    )
    if files := sorted(path.name for path in bench.glob("overhead_*.json")):
        yield f"What a step of each method costs, measured side by side: {', '.join(files)} in results/bench."


def headline(ranking: Ranking) -> str:
    """Return which method has the lowest mean, which differ from the baseline, and what was not tuned."""
    lowest = [one for one in ranking.tested if one.error.mean == ranking.tested[0].error.mean]
    counts = sorted({one.error.n for one in lowest})
    text = f"{' and '.join(one.method for one in lowest)} {'have' if len(lowest) > 1 else 'has'} the lowest mean test"
    text += f" error, {lowest[0].error.mean:.2f} % (n = {' and '.join(map(str, counts))})."
    p = {one.method: ranking.p.get(one.method, math.nan) for one in ranking.tested if one.method != ranking.baseline}
    groups = {
        "lower": [m for m in p if p[m] < LEVEL and ranking.tests[m].mean < 0],
        "higher": [m for m in p if p[m] < LEVEL and ranking.tests[m].mean > 0],
        f"not told apart from it (p ≥ {LEVEL:g} after Holm's correction)": [m for m in p if p[m] >= LEVEL],
        "not tested (fewer than three seeds in common, or equal)": [m for m in p if math.isnan(p[m])],
    }
    found = "; ".join(f"{words}: {', '.join(some)}" for words, some in groups.items() if some)
    text += f" Against {ranking.baseline}: {found}." if found else ""
    one_each = [one.method for one in ranking.tested if not tuned_at_its_rate(one)]
    if one_each:
        text += f" λ was not tuned ({', '.join(one_each)}): the chosen learning rate was tried with one λ only."
    return text


def tuned_at_its_rate(ranked: Ranked) -> bool:
    """Return whether the chosen learning rate was tried with more than one λ; True for a method without λ."""
    chosen = ranked.tuned.chosen
    if chosen is None or "reg.lam" not in chosen.setting.values:
        return True
    values = [one.setting.values for one in ranked.tuned.settings]
    rate = chosen.setting.values.get("train.lr")
    return len({one["reg.lam"] for one in values if one.get("train.lr") == rate}) > 1


def at_edge(ranked: Ranked) -> list[str]:
    """Return the keys of which the chosen value is the lowest or highest that was tried, with their values.

    Not λ where the learning rate alone chose it.
    """
    best = ranked.tuned.chosen
    if best is None or len(ranked.tuned.settings) < 3:
        return []
    found = []
    for key, value in best.setting.values.items():
        tried = [one.setting.values[key] for one in ranked.tuned.settings]
        if value in (min(tried), max(tried)) and (key != "reg.lam" or tuned_at_its_rate(ranked)):
            found.append(f"{key}={value:g}")
    return found
