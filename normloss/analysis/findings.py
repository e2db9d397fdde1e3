"""Findings of a study: a number with n, interval and p, and its sentence. One function per key of `find`."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from normloss.analysis.entries import Best, Difference, Early, Find, Misset, Range, Time
from normloss.analysis.render import between, number, probability
from normloss.analysis.select import Run, as_number, value_of, with_symbols
from normloss.analysis.stats import FEWEST, Paired, bootstrap, paired, summarize
from normloss.analysis.study import side
from normloss.config.labels import spelled
from normloss.errors import UserError

UNITS = {"test_error": "points", "test_error_top5": "points", "train_error": "points", "test_accuracy": "points"}
UNITS |= {"train_ce": "nats", "test_ce": "nats"}
WORDS = {"test_error": "test error", "train_ce": "training cross entropy", "test_ce": "test cross entropy"}
WORDS |= {"norm_mean": "mean filter norm", "turn_mean": "turn of a filter per epoch", "val_error": "validation error"}
AXES = {"reg.lam": "λ", "train.batch_size": "batch size", "train.lr": "lr"}
NAN = math.nan
Sides = list[pd.DataFrame]  # the runs of the two that `of` names


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
    claim: str = ""
    names: tuple[str, ...] = ()  # of the two that are compared
    chosen: tuple[float, ...] = ()  # of a choice in place of a number: what each method's is

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
        if len(self.names) < 2:
            return ""
        if self.n < FEWEST or math.isnan(self.low) or self.low <= 0 <= self.high:
            return "which is lower cannot be told"
        return f"{self.names[0]} is {'lower' if self.high < 0 else 'higher'}"

    def against(self, expected: float, sign: int) -> str:
        """Return holds, does not or cannot be told: whether value - expected has the claimed sign, or the choice is
        the expected one."""
        if self.n < FEWEST or (math.isnan(self.low) and not self.chosen):
            return "cannot be told"
        if self.chosen:
            return "holds" if set(self.chosen) == {expected} else "does not"
        low, high = sorted((sign * (self.low - expected), sign * (self.high - expected)))
        return "holds" if low > 0 else "does not" if high < 0 else "cannot be told"


def find(make: Callable[..., list[Finding]], df: pd.DataFrame, entry: Find) -> list[Finding]:
    """Return what `make` finds in the finished runs of both sides; nothing where one side has none."""
    sides = [side(df, words) if len(df) else df for words in entry.of]
    if any(some.empty for some in sides):
        return []
    names = [spell(words) for words in entry.of]
    prefix = " ".join(spelled(one) for values in entry.where.values() for one in values)
    found = [replace(each, claim=entry.claim) for each in make(sides, names, entry) if each.n]
    return [replace(each, what=f"{prefix}: {each.what}") for each in found] if prefix else found


def spell(words: str) -> str:
    """Return the name of a side: "reg=nl reg.lam_gamma=0" -> nl lam_gamma=0."""
    return with_symbols(" ".join(word.removeprefix("reg=").removeprefix("reg.") for word in words.split()))


# one per key of `find` -----------------------------------------------------------------------------


def difference(sides: Sides, names: list[str], entry: Difference) -> list[Finding]:
    for some, words in zip(sides, entry.of, strict=True):
        if some["cell"].nunique() > 1:
            raise UserError(f"{entry.name}: {words} must name one setting, but its runs differ by more than the seed")
    values = [_by_seed(some, value_of(some, entry.y)) for some in sides]
    return [_paired(values, names, WORDS.get(entry.y, entry.y), entry.y)]


def early(sides: Sides, names: list[str], entry: Early) -> list[Finding]:
    values = []
    for some in sides:
        series = {run.config["seed"]: _before_first_drop(run, entry.y) for run in some["record"]}
        if entry.how == "change":
            series = {seed: np.abs(np.diff(y)) for seed, y in series.items()}
        values.append(pd.Series({seed: y.mean() for seed, y in series.items() if len(y)}, dtype=float))
    mean = "mean" if entry.how == "mean" else "mean change per epoch of"
    detail = ", ".join(f"{name} {number(some.mean(), '.3f')}" for name, some in zip(names, values, strict=True))
    what = f"{mean} {WORDS.get(entry.y, entry.y)} before the first drop of lr"
    return [_paired(values, names, what, entry.y, detail)]


def time(sides: Sides, names: list[str], entry: Time) -> list[Finding]:
    """Return 100 (seconds / seconds - 1) of each seed, of runs on one device that had it alike."""
    how = [
        some["record"].map(lambda run: (run.meta.get("together", 1), run.meta.get("device_name", "?")))
        for some in sides
    ]
    alike = sorted(set(how[0]) & set(how[1]))
    if not alike:
        return []
    one, other = (_by_seed(some[of == alike[0]], some["seconds"]) for some, of in zip(sides, how, strict=True))
    both = one.index.intersection(other.index)
    s = summarize(100 * (one[both] / other[both] - 1))
    what = f"time of a run, {names[0]} to {names[1]}, on {alike[0][1]}"
    return [Finding(what, s.mean, "%", s.n, low=s.low, high=s.high, values=s.values)]


def range_over(sides: Sides, names: list[str], entry: Range) -> list[Finding]:
    """Return the difference of the ranges over the values that both have, largest minus smallest mean."""
    x, (one, other) = _shared(sides, entry)  # (seeds, values)
    if len(x) < 2:
        return []
    seeds = len(one)
    spans = [_span(values.mean(axis=0)) for values in (one, other)]
    ends = [bootstrap(seeds, lambda s, v=values: _span(v[s].mean(axis=0))) for values in (one, other)]
    low, high = bootstrap(seeds, lambda s, t: _span(one[s].mean(axis=0)) - _span(other[t].mean(axis=0)), sides=2)
    p = paired([_span(row) for row in other], [_span(row) for row in one]).p
    parts = [
        f"{name} {number(span, '.2f')}" + ("" if math.isnan(end[0]) else f" [{between(*end)}]")
        for name, span, end in zip(names, spans, ends, strict=True)
    ]
    axis, word = AXES.get(entry.x, entry.x), WORDS.get(entry.y, entry.y)
    what = f"{names[0]} − {names[1]}, range of the mean {word} over {len(x)} values of {axis}"
    more = "; intervals: bootstrap over seeds; p: each seed's own range" if seeds >= FEWEST else ""
    detail = ", ".join(parts) + more
    unit = UNITS.get(entry.y, "")
    value = spans[0] - spans[1]
    return [Finding(what, value, unit, seeds, "seeds per value", low, high, p, detail, names=tuple(names))]


def misset(sides: Sides, names: list[str], entry: Misset) -> list[Finding]:
    found = []
    axis, word, unit = AXES.get(entry.x, entry.x), WORDS.get(entry.y, entry.y), UNITS.get(entry.y, "")
    for some, name in zip(sides, names, strict=True):
        x, values = _block(some, entry.x, entry.y)
        best = int(values.mean(axis=0).argmin())
        for times, which in ((entry.factor, "larger"), (1 / entry.factor, "smaller")):
            for place, one in enumerate(x):
                if math.isclose(one, x[best] * times, rel_tol=1e-6):
                    s = paired(values[:, best], values[:, place])
                    what = f"{name}, {word} lost by {axis} {entry.factor:g} times {which} than its best, {x[best]:g}"
                    found.append(Finding(what, s.mean, unit, s.n, "seeds", s.low, s.high, s.p, values=s.values))
    return found


def best(sides: Sides, names: list[str], entry: Best) -> list[Finding]:
    x, (one, other) = _shared(sides, entry)
    if len(x) < 2:
        return []
    means = one.mean(axis=0), other.mean(axis=0)
    chosen = tuple(x[int(mean.argmin())] for mean in means)
    ahead = [f"{value:g}" for value, mine, theirs in zip(x, *means, strict=True) if theirs < mine]
    detail = ", ".join(f"{value:g} for {name}" for value, name in zip(chosen, names, strict=True))
    detail += f"; {names[1]} is ahead of {names[0]} at {', '.join(ahead) or 'none'} of {len(x)}"
    what = f"best {AXES.get(entry.x, entry.x)} by mean {WORDS.get(entry.y, entry.y)}"
    return [Finding(what, NAN, "", len(one), "seeds per value", detail=detail, chosen=chosen)]


# shared ------------------------------------------------------------------------------------------


def paired_by_seed(one: pd.DataFrame, other: pd.DataFrame, y: str = "test_error") -> Paired:
    """Return the paired test of one - other over the seeds that both have."""
    values = [_by_seed(some, value_of(some, y)) if len(some) else pd.Series(dtype=float) for some in (other, one)]
    seeds = values[0].index.intersection(values[1].index)
    return paired(*(some[seeds] for some in values))


def _paired(values: list[pd.Series], names: list[str], what: str, y: str, detail: str = "") -> Finding:
    """Return the paired test of the first minus the second; values: one per seed of each side."""
    seeds = values[0].index.intersection(values[1].index)
    s = paired(values[1][seeds], values[0][seeds])
    return Finding(
        f"{names[0]} − {names[1]}, {what}", s.mean, UNITS.get(y, ""), s.n, low=s.low, high=s.high, p=s.p,
        detail=detail, values=s.values, names=tuple(names),
    )  # fmt: skip


def _by_seed(runs: pd.DataFrame, values: pd.Series) -> pd.Series:
    return pd.Series(values[runs.index].to_numpy(float), index=runs["seed"].to_numpy(int)).sort_index()


def _block(runs: pd.DataFrame, x: str, y: str) -> tuple[list[float], np.ndarray]:
    """Return the values of x, and y of the seeds that have all of them, (seeds, values)."""
    columns = {"x": [as_number(x, value) for value in runs[x]], "seed": runs["seed"].to_numpy(int)}
    table = pd.DataFrame(columns | {"y": value_of(runs, y).to_numpy(float)})
    if table.duplicated(["x", "seed"]).any():
        raise UserError(f"{x}: the runs differ by more than it and the seed; choose with where")
    wide = table.pivot(index="seed", columns="x", values="y").dropna()
    return list(wide.columns), wide.to_numpy(float)


def _shared(sides: Sides, entry: Range | Best) -> tuple[list[float], list[np.ndarray]]:
    """Return `_block` of each side, over the values of x and the seeds that both have in full."""
    values = set(sides[0][entry.x]) & set(sides[1][entry.x])
    sides = [some[some[entry.x].isin(values)] for some in sides]
    counts = [some.groupby("seed")[entry.x].nunique() for some in sides]
    whole = set.intersection(*(set(count[count == len(values)].index) for count in counts))
    if not whole:
        return [], [np.empty((0, 0))] * 2
    blocks = [_block(some[some["seed"].isin(whole)], entry.x, entry.y) for some in sides]
    return blocks[0][0], [block[1] for block in blocks]


def _span(values: np.ndarray) -> float:
    return float(values.max() - values.min())


def _before_first_drop(run: Run, y: str) -> np.ndarray:
    """Return a logged quantity of each epoch before the first milestone, or of all without one, (epochs,)."""
    milestones = run.config["train"]["milestones"]
    epochs = run.epochs[: milestones[0]] if milestones else run.epochs
    return np.array([100 - epoch["test_error"] if y == "test_accuracy" else epoch[y] for epoch in epochs], dtype=float)
