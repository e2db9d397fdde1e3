"""Findings of a study: a number with n, interval and p, and its sentence. One function per key of `find`."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from normloss.analysis.entries import FACTS, Best, Difference, Each, Early, Find, Misset, Range, Swept, Time
from normloss.analysis.figures import NAMES, per_epoch
from normloss.analysis.render import between, number, probability
from normloss.analysis.select import as_number, value_of, where, with_symbols
from normloss.analysis.stats import FEWEST, Paired, equivalence, paired, summarize
from normloss.analysis.study import Study, read_conditions, side_words
from normloss.config.labels import spelled
from normloss.errors import UserError
from normloss.runs.records import RunRecord

AXES = {"reg.lam": "λ", "train.batch_size": "batch size", "train.lr": "lr"}
NAN = math.nan


@dataclass(frozen=True)
class Finding:
    """One number; where n < 3 there are no interval and no p. It decides nothing then, nor before n is as planned."""

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
    planned: int = 0  # what n is when all seeds of its study are done
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
    def reading(self) -> str:
        """nl is lower"""
        if self.n < self.planned:
            return f"unfinished, {self.n} of {self.planned} seeds"
        if len(self.names) < 2:
            return ""
        if self.n < FEWEST or math.isnan(self.low) or self.low <= 0 <= self.high:
            return "inconclusive"
        return f"{self.names[0]} is {'lower' if self.high < 0 else 'higher'}"

    def against(self, expected: Any, sign: int) -> str:
        """Return whether value - expected has the claimed sign, or the choice is the expected one."""
        if self.n < self.planned:
            return self.reading
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
        return with_symbols(" ".join(word.removeprefix("reg=").removeprefix("reg.") for word in self.words.split()))

    def by_seed(self, values: pd.Series) -> pd.Series:
        """Return the values of the runs, by seed."""
        return pd.Series(values.to_numpy(float), index=self.runs["seed"].to_numpy(int))

    def block(self, entry: Swept) -> pd.DataFrame:
        """Return the quantity y, one row per seed and one column per value of x; NaN where no run is finished."""
        x, seed = [as_number(entry.x, value) for value in self.runs[entry.x]], self.runs["seed"].astype(int)
        table = pd.DataFrame({"x": x, "seed": seed, "y": value_of(self.runs, entry.y)})
        if table.duplicated(["x", "seed"]).any():
            raise UserError(f"{entry.x}: the runs differ in other keys too; choose with where")
        return table.pivot(index="seed", columns="x", values="y")


Logged = Swept | Difference | Early  # entries with a quantity y
Make = Callable[[list[Side], Any, Study], list[Finding]]


def find(make: Make, df: pd.DataFrame, entry: Find, study: Study) -> list[Finding]:
    """Return what `make` finds in the finished runs of `df`; nothing without the baseline, which `of` names last."""
    sides = [Side(words, where(df, read_conditions(side_words(words)))) for words in entry.of]
    found = [each for each in sides if len(each.runs)]
    if len(found) < (1 if isinstance(entry, Swept) else len(sides)):
        return []
    prefix = " ".join(spelled(one) for key, values in entry.where.items() if key.endswith(".name") for one in values)
    others = [key for key in entry.where if not key.endswith(".name") and key != "seed"]
    prefix = " ".join([prefix, *(f"{AXES.get(key, key)} = {_values(entry.where[key])}" for key in others)]).strip()
    seeds = f"seeds {_values(entry.where['seed'])}" if "seed" in entry.where else "seeds"
    ids = {each.name: list(each.runs["id"]) for each in found}
    planned = len(entry.where.get("seed", study.sweep.get("seed", ["0"])))
    made = [
        replace(
            each,
            claim=entry.claim if each.claim is None else each.claim,
            what=f"{prefix}: {each.what}" if prefix else each.what,
            of=each.of.replace("seeds", seeds),
            planned=planned,
            runs=each.runs or tuple(id for name in each.names or ids for id in ids[name]),
        )
        for each in make(found, entry, study)
        if each.n
    ]
    facts = [{key: getattr(each, key) for key in FACTS} | {"n": each.count} for each in made]
    return [replace(each, headline=entry.headline.format(**told)) for each, told in zip(made, facts, strict=True)]


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
            raise UserError(f"{entry.name}: {each.words}: must name one setting, but the runs differ in other keys too")
    one, other = (each.by_seed(value_of(each.runs, entry.y)) for each in sides)
    found = _paired(one, other, sides, _word(entry), entry)
    if entry.within is None or not found.n:
        return [found]
    verdict, low, high = equivalence(found.values, entry.within)
    ends = "" if math.isnan(low) else f" (90 % interval {between(low, high, '+.2f')})"
    detail = f"{verdict} within ±{entry.within:g} {found.unit}{ends}, by two one-sided tests"
    return [replace(found, detail=detail, names=())]


def early(sides: list[Side], entry: Early, _: Study) -> list[Finding]:
    when = "over the epochs" if entry.how == "mean" else "at the last epoch"
    what = f"{'mean ' * (entry.how == 'mean')}{_word(entry)} {when} before the first drop of lr"
    values = [each.by_seed(each.runs["record"].map(lambda run: _before_first_drop(run, entry))) for each in sides]
    means = (f"{each.name} {number(some.mean(), '.3f')}" for each, some in zip(sides, values, strict=True))
    detail = f"{', '.join(means)} {NAMES.get(entry.y, ('', ''))[1]}".rstrip()
    return [replace(_paired(values[0], values[1], sides, what, entry), detail=detail)]


def time(sides: list[Side], entry: Time, _: Study) -> list[Finding]:
    """Return 100 (seconds / seconds - 1) of each seed, of runs that had one kind of device to themselves.

    A run says so in its meta.json (`at_once`: how many runs its sweep trained at once); one that does not say counts as
    shared.
    """
    devices = [
        each.runs["record"].map(lambda run: run.meta.get("at_once") == 1 and run.meta.get("device_name", "?"))
        for each in sides
    ]
    both = sorted(set(devices[0]) & set(devices[1]) - {False})
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
        found += [replace(_paired(spans[0], spans[1], pair, what, entry), detail=detail, runs=runs)]
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
        detail = f"{parts} {_unit(entry)}; {count}"
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
        for factor, word in ((10, "larger"), (0.1, "smaller")):
            wanted = float(f"{factor * recipe:g}")  # as a sweep has it
            what = f"{each.name}, {_word(entry)} at {_axis(entry)} 10 times {word} than its recipe's"
            if lacking := [value for value in (recipe, wanted) if value not in block]:
                what, detail = f"{what}, {recipe:g}", f"{lacking[0]:g} was not trained here"
                found.append(Finding(what, NAN, "", len(block), "seeds", detail=detail, names=(each.name,)))
                continue
            test = _tested(paired(block[recipe], block[wanted]), f"{what}, {wanted:g} − {recipe:g}", entry)
            runs = tuple(each.runs["id"][each.runs[entry.x].isin([recipe, wanted])])
            found.append(replace(test, of="seeds", runs=runs))
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
    *others, (last, block) = swept
    for each, own in others if last.words == entry.of[-1] else []:
        what = f"{_word(entry)}, each at its best {_axis(entry)}, chosen on these runs"
        test = _paired(own[chosen[each.name]], block[chosen[last.name]], [each, last], what, entry)
        found.append(replace(test, claim="", runs=runs))
    return found


# shared ------------------------------------------------------------------------------------------


def _paired(one: pd.Series, other: pd.Series, sides: list[Side], what: str, entry: Logged) -> Finding:
    """Return the paired test of one - other over the seeds that both have."""
    names = tuple(each.name for each in sides)
    return replace(_tested(paired(other, one), f"{' − '.join(names)}, {what}", entry), names=names)


def _tested(s: Paired, what: str, entry: Logged) -> Finding:
    return Finding(what, s.mean, _unit(entry), s.n, low=s.low, high=s.high, p=s.p, values=s.values)


def _ids(entry: Swept, sides: Iterable[Side], blocks: Iterable[pd.DataFrame]) -> tuple[str, ...]:
    """Return the runs of the seeds and values of each side's block."""
    ids: list[str] = []
    for each, block in zip(sides, blocks, strict=True):
        x, seed = (each.runs[key].astype(float) for key in (entry.x, "seed"))
        ids.extend(each.runs["id"][x.isin(block.columns) & seed.isin(block.index)])
    return tuple(ids)


def _shared(sides: list[Side], entry: Range | Each) -> Iterator[tuple[list[Side], tuple[pd.DataFrame, pd.DataFrame]]]:
    """Yield each side with the baseline, and both's blocks, (seeds, values), of the values of x and the seeds that both
    have in full; only those with a seed and two values or more."""
    *others, baseline = sides
    for each in others if baseline.words == entry.of[-1] else []:
        one, other = each.block(entry), baseline.block(entry)
        one, other = (block[one.columns.intersection(other.columns)].dropna() for block in (one, other))
        seeds = one.index.intersection(other.index)
        if len(seeds) and one.shape[1] > 1:
            yield [each, baseline], (one.loc[seeds], other.loc[seeds])


def _before_first_drop(run: RunRecord, entry: Early) -> float:
    """Return a logged quantity before the first milestone, or of the whole run without one: its mean or last value."""
    milestones, values = run.config["train"]["milestones"], per_epoch([run], entry.y)[0]
    values = values[: milestones[0]] if milestones else values
    return values.mean() if entry.how == "mean" else values[-1]


def _word(entry: Logged) -> str:
    return NAMES.get(entry.y, (entry.y, ""))[0]


def _unit(entry: Logged) -> str:
    return NAMES.get(entry.y, ("", ""))[1].replace("%", "points")


def _axis(entry: Swept) -> str:
    return AXES.get(entry.x, entry.x)
