"""Findings of a study: a number with n, interval and p, and its sentence. One function per key of `find`."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from normloss.analysis.entries import Best, Difference, Each, Early, Find, Misset, Range, Swept, Time
from normloss.analysis.render import between, number, probability
from normloss.analysis.select import as_number, value_of, with_symbols
from normloss.analysis.stats import FEWEST, equivalence, paired, summarize
from normloss.analysis.study import Study, side
from normloss.config.labels import spelled
from normloss.errors import UserError
from normloss.runs.records import RunRecord

UNITS = {"test_error": "points", "test_error_top5": "points", "train_error": "points", "test_accuracy": "points"}
UNITS |= {"train_ce": "nats", "test_ce": "nats"}
WORDS = {"test_error": "test error", "train_ce": "training cross entropy", "test_ce": "test cross entropy"}
WORDS |= {"norm_mean": "mean filter norm", "turn_mean": "turn of a filter per epoch", "val_error": "validation error"}
WORDS |= {"test_error_top5": "top-5 test error"}
AXES = {"reg.lam": "λ", "train.batch_size": "batch size", "train.lr": "lr"}
NAN = math.nan


@dataclass(frozen=True)
class Finding:
    """One number; where n < 3 there are no interval and no p, and it decides nothing."""

    what: str  # "nl − wd, test error"
    value: float
    unit: str = "points"
    n: int = 0
    of: str = "pairs of seeds"
    low: float = NAN  # 95 % interval of the value
    high: float = NAN
    p: float = NAN
    detail: str = ""
    values: tuple[float, ...] = ()  # of each pair
    claim: str | None = None  # None: the entry's
    names: tuple[str, ...] = ()  # of the two that are compared
    chosen: tuple[Any, ...] = ()  # of a choice in place of a number: what each method's is
    headline: str = ""  # README's sentence
    runs: tuple[str, ...] = ()  # ids of what it is made of

    @property
    def result(self) -> str:
        """−0.80 points"""
        if math.isnan(self.value):
            return self.detail
        values = self.values if 1 < self.n < FEWEST and self.values else [self.value]
        return f"{', '.join(number(value, '+.2f') for value in values)} {self.unit}".strip()

    @property
    def interval(self) -> str:
        return between(self.low, self.high, "+.2f")

    @property
    def count(self) -> str:
        """5 pairs of seeds"""
        return f"{self.n} {self.of.replace('pairs', 'pair').replace('seeds', 'seed') if self.n == 1 else self.of}"

    @property
    def sentence(self) -> str:
        if math.isnan(self.value):
            return f"{self.what}: {self.detail} (n = {self.count})."
        facts = [] if math.isnan(self.low) else [f"95 % interval {self.interval}"]
        facts += [f"n = {self.count}"]
        facts += [] if math.isnan(self.p) else [f"p {'' if self.p < 0.001 else '= '}{probability(self.p)}"]
        facts += ["too few for an interval"] if self.n < FEWEST else []
        parts = [f"{self.what}: {self.result} ({', '.join(facts)})", self.detail, self.reading]
        return f"{'; '.join(filter(None, parts))}."

    @property
    def facts(self) -> dict[str, str]:
        """The facts that a headline may name."""
        return {"result": self.result, "interval": self.interval, "n": self.count, "reading": self.reading}

    @property
    def reading(self) -> str:
        """nl is lower"""
        if len(self.names) < 2:
            return ""
        if self.n < FEWEST or math.isnan(self.low) or self.low <= 0 <= self.high:
            return "inconclusive"
        return f"{self.names[0]} is {'lower' if self.high < 0 else 'higher'}"

    def against(self, expected: Any, sign: int) -> str:
        """Return holds, does not hold or inconclusive: whether value - expected has the claimed sign, or the choice is
        the expected one."""
        if self.n < FEWEST or (math.isnan(self.low) and not self.chosen):
            return "inconclusive"
        if self.chosen:
            return "holds" if set(self.chosen) == {expected} else "does not hold"
        low, high = sorted((sign * (self.low - expected), sign * (self.high - expected)))
        return "holds" if low > 0 else "does not hold" if high < 0 else "inconclusive"


@dataclass(frozen=True)
class Side:
    """One of the methods, or conditions, that `of` names."""

    words: str
    runs: pd.DataFrame  # finished

    @property
    def name(self) -> str:
        """nl lam_gamma=0"""
        text = " ".join(word.removeprefix("reg=").removeprefix("reg.") for word in self.words.split())
        return with_symbols(text)

    def by_seed(self, values: pd.Series) -> pd.Series:
        """Return the values of the runs, by seed."""
        seeds = self.runs["seed"].to_numpy(int)
        return pd.Series(values[self.runs.index].to_numpy(float), index=seeds).sort_index()

    def block(self, entry: Swept) -> pd.DataFrame:
        """Return the quantity y, one row per seed and one column per value of x; NaN where no run is finished."""
        columns = {
            "x": [as_number(entry.x, value) for value in self.runs[entry.x]],
            "seed": self.runs["seed"].astype(int),
        }
        table = pd.DataFrame(columns | {"y": value_of(self.runs, entry.y).astype(float)})
        if table.duplicated(["x", "seed"]).any():
            raise UserError(f"{entry.x}: the runs differ in other keys too; choose with where")
        return table.pivot(index="seed", columns="x", values="y")

    def ids(self, entry: Swept, block: pd.DataFrame) -> tuple[str, ...]:
        """Return the runs of a block's seeds and values."""
        x = self.runs[entry.x].map(lambda value: as_number(entry.x, value))
        return tuple(self.runs["id"][x.isin(block.columns) & self.runs["seed"].astype(int).isin(block.index)])


Make = Callable[[list[Side], Any, Study], list[Finding]]


def find(make: Make, df: pd.DataFrame, entry: Find, study: Study) -> list[Finding]:
    """Return what `make` finds in the finished runs of `df`; nothing without the baseline, which `of` names last."""
    sides = [Side(words, side(df, words) if len(df) else df) for words in entry.of]
    found = [each for each in sides if len(each.runs)]
    if len(found) < len(sides) if not entry.every else not found:
        return []
    prefix = " ".join(spelled(one) for key, values in entry.where.items() if key.endswith(".name") for one in values)
    others = [key for key in entry.where if not key.endswith(".name") and key != "seed"]
    prefix = " ".join([prefix, *(f"{AXES.get(key, key)} = {_values(entry.where[key])}" for key in others)]).strip()
    seeds = f"seeds {_values(entry.where['seed'])}" if "seed" in entry.where else "seeds"
    ids = {each.name: list(each.runs["id"]) for each in found}
    return [
        replace(
            each,
            claim=entry.claim if each.claim is None else each.claim,
            what=f"{prefix}: {each.what}" if prefix else each.what,
            of=each.of.replace("seeds", seeds),
            headline=entry.headline.format(**each.facts),
            runs=each.runs or tuple(id for name in each.names or ids for id in ids[name]),
        )
        for each in make(found, entry, study)
        if each.n
    ]


def _values(values: list[Any]) -> str:
    """Return the values of a condition: 0 to 4 for whole numbers in a row, else 0.0001, 0.001."""
    whole = len(values) > 2 and all(isinstance(one, int) for one in values)
    if whole and values == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(spelled, values))


# one per key of `find` -----------------------------------------------------------------------------


def difference(sides: list[Side], entry: Difference, _: Study) -> list[Finding]:
    for each in sides:
        if each.runs["setting_id"].nunique() > 1:
            raise UserError(
                f"{entry.name}: {each.words} must name one setting, but its runs differ in more than the seed"
            )
    one, other = (each.by_seed(value_of(each.runs, entry.y)) for each in sides)
    found = _paired(one, other, sides, _word(entry), entry.y)
    if entry.within is None or not found.n:
        return [found]
    verdict, low, high = equivalence(found.values, entry.within)
    ends = "" if math.isnan(low) else f" (90 % interval {between(low, high, '+.2f')})"
    detail = f"{verdict} within ±{entry.within:g} {found.unit}{ends}, by two one-sided tests"
    return [replace(found, detail=detail, names=())]


def early(sides: list[Side], entry: Early, _: Study) -> list[Finding]:
    measures: dict[str, tuple[str, Callable[[np.ndarray], float]]] = {
        "mean": ("mean {} over the epochs before the first drop of lr", np.mean),
        "last": ("{} at the last epoch before the first drop of lr", lambda y: y[-1]),
        "change": ("mean change per epoch of {} before the first drop of lr", lambda y: np.abs(np.diff(y)).mean()),
    }
    what, measure = measures[entry.how]
    values: list[pd.Series] = []
    for each in sides:
        logged = {run.config["seed"]: _before_first_drop(run, entry.y) for run in each.runs["record"]}
        enough = {seed: measure(y) for seed, y in logged.items() if len(y) > (entry.how == "change")}
        values.append(pd.Series(enough, dtype=float))
    means = ", ".join(f"{each.name} {number(some.mean(), '.3f')}" for each, some in zip(sides, values, strict=True))
    return [replace(_paired(values[0], values[1], sides, what.format(_word(entry)), entry.y), detail=means)]


def time(sides: list[Side], entry: Time, _: Study) -> list[Finding]:
    """Return 100 (seconds / seconds - 1) of each seed, of runs that had one kind of device to themselves.

    A run says so in its meta.json (`at_once`: how many runs its sweep trained at once); one that does not say counts as
    shared.
    """
    devices = [
        each.runs["record"].map(lambda run: run.meta.get("device_name", "?") if run.meta.get("at_once") == 1 else None)
        for each in sides
    ]
    both = sorted(set(devices[0].dropna()) & set(devices[1].dropna()))
    if not both:
        return []
    alone = [Side(each.words, each.runs[of == both[0]]) for each, of in zip(sides, devices, strict=True)]
    one, other = (each.by_seed(each.runs["seconds"]) for each in alone)
    s = summarize(100 * (one / other - 1).dropna())
    what = f"time of a run, {sides[0].name} to {sides[1].name}, one run at a time on {both[0]}"
    return [Finding(what, s.mean, "%", s.n, low=s.low, high=s.high, values=s.values)]


def range_over(sides: list[Side], entry: Range, _: Study) -> list[Finding]:
    """Return the difference of each seed's own range, largest minus smallest value, over the values that both have.

    The range of noisy values is biased upwards, more so where there are more of them.
    """
    found = []
    for pair, blocks in _shared(sides, entry):
        spans = [block.max(axis=1) - block.min(axis=1) for block in blocks]
        what = f"each seed's range of {_word(entry)} over {blocks[0].shape[1]} values of {_axis(entry)}"
        detail = ", ".join(
            f"{each.name} {number(span.mean(), '.2f')} (of the means {number(np.ptp(block.mean(axis=0)), '.2f')})"
            for each, span, block in zip(pair, spans, blocks, strict=True)
        )
        detail += ", biased upwards by the spread of seeds"
        runs = _ids(entry, pair, blocks)
        found += [replace(_paired(spans[0], spans[1], pair, what, entry.y), detail=detail, runs=runs)]
    return found


def each(sides: list[Side], entry: Each, _: Study) -> list[Finding]:
    """Return the differences of the means at each value, and at how many of them the first is lower."""
    found = []
    for pair, (one, other) in _shared(sides, entry):
        differences = one.mean(axis=0) - other.mean(axis=0)
        lower = [f"{x:g}" for x, value in differences.items() if value < 0]
        parts = ", ".join(f"{number(value, '+.2f')} at {x:g}" for x, value in differences.items())
        at = f" ({', '.join(lower)})" if lower else ""
        count = f"{pair[0].name} is lower at {len(lower)} of {len(differences)}{at}"
        detail = f"{parts} {UNITS.get(entry.y, '')}; {count}"
        what = f"{pair[0].name} − {pair[1].name}, {_word(entry)} by {_axis(entry)}"
        most = ("most" if 2 * len(lower) > len(differences) else "not most",)
        runs = _ids(entry, pair, (one, other))
        found.append(Finding(what, NAN, "", len(one), "seeds per value", detail=detail, chosen=most, runs=runs))
    return found


def misset(sides: list[Side], entry: Misset, study: Study) -> list[Finding]:
    found = []
    for each in sides:
        block = each.block(entry)
        recipe = study.recipe_value(entry.x, each.words, entry.where)
        base = next((x for x in block if math.isclose(x, recipe, rel_tol=1e-6)), None)
        for times, word in ((entry.factor, "larger"), (1 / entry.factor, "smaller")):
            wanted = recipe * times
            place = next((x for x in block if math.isclose(x, wanted, rel_tol=1e-6)), None)
            what = f"{each.name}, {_word(entry)} at {_axis(entry)} {entry.factor:g} times {word} than its recipe's"
            if base is None or place is None:
                detail = f"{recipe if base is None else wanted:g} was not trained here"
                found.append(
                    Finding(f"{what}, {recipe:g}", NAN, "", len(block), "seeds", detail=detail, names=(each.name,))
                )
                continue
            s = paired(block[base], block[place])
            test = (s.low, s.high, s.p)
            what = f"{what}, {wanted:g} − {recipe:g}"
            runs = tuple(each.runs["id"][each.runs[entry.x].isin([base, place])])
            found.append(Finding(what, s.mean, UNITS.get(entry.y, ""), s.n, "seeds", *test, values=s.values, runs=runs))
    return found


def best(sides: list[Side], entry: Best, _: Study) -> list[Finding]:
    """Return each method's best value, and the difference with each at its best: chosen on the runs that test it."""
    blocks = [block.dropna(axis=1, how="all").dropna() for block in (each.block(entry) for each in sides)]
    swept = [(each, block) for each, block in zip(sides, blocks, strict=True) if block.shape[1] > 1 and len(block)]
    if not swept:
        return []
    chosen = {each.name: float(block.mean(axis=0).idxmin()) for each, block in swept}
    detail = ", ".join(f"{value:g} for {name}" for name, value in chosen.items())
    what, n = f"best {_axis(entry)} by mean {_word(entry)}", min(len(block) for _, block in swept)
    runs = _ids(entry, *zip(*swept, strict=True))
    found = [Finding(what, NAN, "", n, "seeds per value", detail=detail, chosen=tuple(chosen.values()), runs=runs)]
    columns = {each.words: block[chosen[each.name]] for each, block in swept}
    for one, other in _pairs(sides, entry):
        if one.words in columns and other.words in columns:
            word = f"{_word(entry)}, each at its best {_axis(entry)}, chosen on these runs"
            test = _paired(columns[one.words], columns[other.words], [one, other], word, entry.y)
            found.append(replace(test, claim="", runs=runs))
    return found


# shared ------------------------------------------------------------------------------------------


def _paired(one: pd.Series, other: pd.Series, sides: list[Side], what: str, y: str) -> Finding:
    """Return the paired test of one - other over the seeds that both have."""
    s = paired(other, one)
    names = tuple(each.name for each in sides)
    what, unit = f"{' − '.join(names)}, {what}", UNITS.get(y, "")
    return Finding(what, s.mean, unit, s.n, low=s.low, high=s.high, p=s.p, values=s.values, names=names)


def _ids(entry: Swept, sides: Sequence[Side], blocks: Sequence[pd.DataFrame]) -> tuple[str, ...]:
    """Return the runs of the sides' blocks."""
    return tuple(id for each, block in zip(sides, blocks, strict=True) for id in each.ids(entry, block))


def _pairs(sides: list[Side], entry: Find) -> list[list[Side]]:
    """Return each side with the baseline, which `of` names last."""
    if sides[-1].words != entry.of[-1]:
        return []
    return [[each, sides[-1]] for each in sides[:-1]]


def _shared(sides: list[Side], entry: Range | Each) -> Iterator[tuple[list[Side], tuple[pd.DataFrame, pd.DataFrame]]]:
    """Yield each side with the baseline, and both's blocks, (seeds, values), of the values of x and the seeds that both
    have in full; only those with a seed and two values or more."""
    for pair in _pairs(sides, entry):
        one, other = (each.block(entry) for each in pair)
        one, other = (block[one.columns.intersection(other.columns)].dropna() for block in (one, other))
        seeds = one.index.intersection(other.index)
        if len(seeds) and one.shape[1] > 1:
            yield pair, (one.loc[seeds], other.loc[seeds])


def _before_first_drop(run: RunRecord, y: str) -> np.ndarray:
    """Return a logged quantity of each epoch before the first milestone, or of all without one, (epochs,)."""
    milestones = run.config["train"]["milestones"]
    epochs = run.epochs[: milestones[0]] if milestones else run.epochs
    return np.array([100 - epoch["test_error"] if y == "test_accuracy" else epoch[y] for epoch in epochs], dtype=float)


def _word(entry: Swept | Difference | Early) -> str:
    return WORDS.get(entry.y, entry.y)


def _axis(entry: Swept) -> str:
    return AXES.get(entry.x, entry.x)
