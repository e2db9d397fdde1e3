"""The outcome of a tuning comparison: each method's chosen setting, its test error over fresh seeds, and their tests.

Tests are paired by seed, against one baseline that is fixed before anything is trained; p-values are Holm's over all
methods that were asked for, trained or not. Seeds repeat the training, not the search: another draw of settings could
choose otherwise.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
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
from normloss.sweeps.trials import FOLDER, Lookup, MethodResult, Tuning, read
from normloss.sweeps.tuning import Search, asked

LEVEL = 0.05  # of the tests
QUESTION = "Which regularizer, if all are tuned alike on held-out images?"


@dataclass(frozen=True)
class Ranking:
    tuning: Tuning
    methods: list[MethodResult]  # complete ones by ascending mean test error, those without one last
    baseline: str
    tests: Mapping[str, Paired]  # of the others against the baseline, as far as both are done
    p: Mapping[str, float]  # Holm's, of these

    @property
    def title(self) -> str:
        old = " by an earlier search, which drew rate and λ together" if self.tuning.earlier else ""
        return f"Methods compared{old}, {self.tuning.title}"

    @property
    def tested(self) -> list[MethodResult]:
        return [result for result in self.methods if result.errors]

    @property
    def unfinished(self) -> list[MethodResult]:
        return [result for result in self.tuning.methods.values() if not result.complete]

    @property
    def ended(self) -> int:
        """Trainings that came to an end."""
        return sum(result.ended for result in self.tuning.methods.values())

    @property
    def planned(self) -> int:
        """Trainings of the whole comparison, as far as its rates are known; of an earlier search those that ended."""
        planned = sum(
            len(one.trials[0].runs) * (len(one.trials) + one.to_come) + len(one.trials[0].finals)
            for one in self.tuning.methods.values()
        )
        return self.ended if self.tuning.earlier else planned

    @property
    def progress(self) -> str:
        methods = f"{len(self.methods)} of {len(self.tuning.methods)} methods tried to the end"
        return f"{methods}, {self.ended} {'' if self.tuning.earlier else f'of {self.planned} '}trainings"


def error(result: MethodResult) -> Summary:
    """Return the test error of a method's best setting over its seeds."""
    return summarize(result.errors.values())


# which comparisons -------------------------------------------------------------------------------


def rankings(df: pd.DataFrame, results: Path) -> list[Ranking]:
    """Return the rankings that experiments ask for, and those of files in RESULTS/comparisons, which hold earlier ones.

    Without those of which no method is tried to the end.
    """
    if "dataset.val" not in df or (done(df)["dataset.val"] == 0).all():  # no trial: composing costs seconds
        return []
    lookup = lookup_among(df["record"])
    files = sorted((CONFIGS / "experiment").glob("*.yaml"))
    names = [file.stem for file in files if "compare" in OmegaConf.load(file)]
    tunings = [Search([f"experiment={name}"]).tuning(lookup) for name in names]
    return _begun([*tunings, *_stored(results, lookup)])


def rankings_of_store(df: pd.DataFrame, store: Path) -> list[Ranking]:
    """Return the rankings that train.py compare=... wrote to a store, without those of an experiment."""
    found = _stored(store, lookup_among(df["record"]))
    return _begun([one for one in found if not any(word.startswith("experiment=") for word in one.words)])


def _stored(store: Path, lookup: Lookup) -> list[Tuning]:
    return [read(path, lookup) for path in sorted((store / FOLDER).glob("*.json"))]


def _begun(tunings: list[Tuning]) -> list[Ranking]:
    return [ranking for tuning in tunings if (ranking := rank(tuning)).methods]


def find(words: list[str], store: Path | None, results: Path) -> Tuning:
    """Return the tuning comparison of a command's words, or of one file.

    store: the runs, with those archived in `results`, in place of the command's or the file's.
    """
    if len(words) > 1 or "=" in words[0]:
        if not asked(words):
            raise UserError(f"{' '.join(words)}: must be a comparison, compare=METHOD,... or experiment=small_compare")
        search = Search([*words, f"store={store}"] if store else words)
        return search.tuning(lookup_among(gather(search.store, results)))
    file = Path(words[0])
    return read(file, lookup_among(gather(store or file.absolute().parent.parent, results)))


def lookup_among(runs: Iterable[RunRecord]) -> Lookup:
    """Return what gives a run's state and final metrics by its id."""
    seen = {run.id: (run.state, run.final) for run in runs}
    return lambda id: seen.get(id, ("missing", None))


# ranking -----------------------------------------------------------------------------------------


def rank(tuning: Tuning, baseline: str | None = None) -> Ranking:
    """Return the methods whose trials have all ended, by mean test error.

    baseline: what the others are tested against; weight decay, else no regularization, else the first method, where it
    is not given. Raises UserError for a method that is not compared.
    """
    names = [*tuning.methods]
    if baseline and baseline not in names:
        raise UserError(f"--baseline: must be one of {' '.join(names)}, got {baseline!r}")
    baseline = baseline or next((name for name in BASELINES if name in names), names[0])
    complete = [result for result in tuning.methods.values() if result.complete]
    complete.sort(key=lambda result: (not result.errors, error(result).mean if result.errors else 0.0))
    errors = {result.method: result.errors for result in complete if result.errors}
    others = errors.keys() - {baseline} if baseline in errors else ()
    tests = {name: paired(errors[baseline], errors[name]) for name in others}
    p = holm({name: test.p for name, test in tests.items()}, len(names) - 1)
    return Ranking(tuning, complete, baseline, tests, p)


def holm(p: Mapping[str, float], family: int) -> dict[str, float]:
    """Return Holm's adjusted p-values: max over j <= i of min(1, (m - j) p_(j)), p ascending and j from 0.

    family: m, how many tests were planned. NaN is a test that could not be made: it counts in m as if it came last.
    """
    known = sorted((value, name) for name, value in p.items() if not math.isnan(value))
    steps = accumulate((min(1.0, (family - j) * value) for j, (value, _) in enumerate(known)), max)
    return dict.fromkeys(p, math.nan) | {name: adjusted for (_, name), adjusted in zip(known, steps, strict=True)}


# the table ---------------------------------------------------------------------------------------


def table(ranking: Ranking, bench: Path) -> Table:
    """Return the ranking's table; bench: the folder of what `scripts/bench.py overhead` measured."""
    columns = (
        plain("method"),
        plain("chosen"),
        Column("settings tried", lambda row: _counted(row["trials"], row["trials_diverged"])),
        plain("val_error", "validation error %", ".2f"),
        Column("test error %, mean ± sd", _spread),
        plain("n"),
        Column("95 % interval", lambda row: between(row["test_error_low"], row["test_error_high"])),
        plain("difference", f"minus {ranking.baseline}", "+.2f"),
        Column("95 % interval of it", lambda row: between(row["difference_low"], row["difference_high"], "+.2f")),
        Column("p (Holm)", lambda row: probability(row["p_holm"])),
        plain("trainings"),
    )
    held_out = ranking.tuning.held_out
    images = "its own images" if held_out == "file" else f"{held_out} training images"
    title = f"{ranking.title}; {images} held out to choose by."
    title += f" {headline(ranking)}" if ranking.tested else ""
    rows = [_row(ranking, result) for result in ranking.methods]
    return Table(ranking.tuning.name, title, columns, rows, list(notes(ranking, bench)), left=2)


def _row(ranking: Ranking, result: MethodResult) -> dict[str, Any]:
    spread, best = error(result), result.best
    test = ranking.tests.get(result.method) or paired({}, {})
    values = best.values if best else {}
    return {
        "method": result.method,
        "trials": len(result.trials),
        "trials_diverged": result.diverged,
        "chosen": str(best) if best else "–",
        "lr": values.get("train.lr", math.nan),
        "lam": values.get("reg.lam", math.nan),
        "val_error": best.error if best else math.nan,
        "test_error_mean": spread.mean,
        "test_error_sd": spread.sd,
        "n": spread.n,
        "finals_diverged": _diverged(result),
        "test_error_low": max(spread.low, 0.0) if spread.low == spread.low else math.nan,
        "test_error_high": spread.high,
        "baseline": ranking.baseline,
        "difference_n": test.n,
        "difference": test.mean,
        "difference_low": test.low,
        "difference_high": test.high,
        "p": test.p,
        "p_holm": ranking.p.get(result.method, math.nan),
        "trainings": result.ended,
    }


def _diverged(result: MethodResult) -> int:
    """Return how many runs of the best setting diverged."""
    return sum(run.state == "diverged" for run in result.finals)


def _counted(settings: int, diverged: int) -> str:
    return f"{settings}, {diverged} diverged" if diverged else str(settings)


def _spread(row: Mapping[str, Any]) -> str:
    text = number(row["test_error_mean"], ".2f")
    return text if math.isnan(row["test_error_sd"]) else f"{text} ± {row['test_error_sd']:.2f}"


# in words ----------------------------------------------------------------------------------------


def notes(ranking: Ranking, bench: Path) -> Iterable[str]:
    """Yield what is missing, what diverged, and how to read the numbers."""
    count, total = len(ranking.methods), len(ranking.tuning.methods)
    if left := "; ".join(f"{one.method}: {one.why}" for one in ranking.unfinished):
        yield f"Ranked: {count} of {total} methods, those whose settings are all tried. Not yet: {left}."
    for one in ranking.tuning.methods.values():
        if one.diverged:
            yield f"{one.method}: {one.diverged} of {len(one.trials)} settings diverged."
    for one in ranking.methods:
        runs, diverged = len(one.finals), _diverged(one)
        if diverged:
            yield f"{one.method}: {diverged} of {runs} runs of the chosen setting diverged, not counted."
        if to_do := runs - diverged - len(one.errors):
            yield f"{one.method}: {to_do} of {runs} runs of the chosen setting are to be done."
    edges = [f"{one.method} ({', '.join(keys)})" for one in ranking.methods if (keys := at_edge(one))]
    if edges:
        yield f"Chosen at the lowest or highest value tried, so that a better one may lie beyond: {', '.join(edges)}."
    yield (
        "Settings are chosen by the validation error of the last epoch, never by the test set. ±: sample standard"
        f" deviation over seeds; intervals: Student's t; p: paired t-test by seed against {ranking.baseline}, Holm's"
        f" correction over all {total - 1} other methods, whether tried or not. Seeds repeat the training of the"
        " chosen setting, not the search. Weight decay beside a method is not tuned."
    )
    if files := sorted(path.name for path in bench.glob("overhead_*.json")):
        yield f"What a step of each method costs, measured side by side: {', '.join(files)} in results/bench."


def headline(ranking: Ranking) -> str:
    """Return which method has the lowest mean, which differ from the baseline, and what was not tuned."""
    lowest = [one for one in ranking.tested if error(one).mean == error(ranking.tested[0]).mean]
    counts = sorted({len(one.errors) for one in lowest})
    text = f"Lowest mean test error: {' and '.join(one.method for one in lowest)}, {error(lowest[0]).mean:.2f} %"
    text += f" (n = {' and '.join(map(str, counts))})."
    p = {one.method: ranking.p.get(one.method, math.nan) for one in ranking.tested if one.method != ranking.baseline}
    groups = {
        "lower": [m for m in p if p[m] < LEVEL and ranking.tests[m].mean < 0],
        "higher": [m for m in p if p[m] < LEVEL and ranking.tests[m].mean > 0],
        f"no difference found (p ≥ {LEVEL:g} after Holm's correction)": [m for m in p if p[m] >= LEVEL],
        "not tested (fewer than three seeds in common, or equal)": [m for m in p if math.isnan(p[m])],
    }
    found = "; ".join(f"{words}: {', '.join(some)}" for words, some in groups.items() if some)
    if ranking.baseline not in [one.method for one in ranking.tested]:
        found = "nothing is tested before it is tried to the end"
    text += f" Against {ranking.baseline}: {found}." if found else ""
    one_each = [one.method for one in ranking.tested if not tuned_at_its_rate(one)]
    if one_each:
        text += f" λ was not tuned ({', '.join(one_each)}): the chosen learning rate was tried with one λ only."
    return text


def tuned_at_its_rate(result: MethodResult) -> bool:
    """Return whether the best learning rate was tried with more than one λ; True for a method without λ."""
    if result.best is None or "reg.lam" not in result.best.values:
        return True
    rate, values = result.best.values["train.lr"], [one.values for one in result.trials]
    return len({one["reg.lam"] for one in values if one["train.lr"] == rate}) > 1


def at_edge(result: MethodResult) -> list[str]:
    """Return the keys of which the best value is the lowest or highest that was tried, with their values.

    Not λ where the learning rate alone chose it.
    """
    if result.best is None or len(result.trials) < 3:
        return []
    found = []
    for key, value in result.best.values.items():
        tried = [one.values[key] for one in result.trials]
        if value in (min(tried), max(tried)) and (key != "reg.lam" or tuned_at_its_rate(result)):
            found.append(f"{key}={value:g}")
    return found
