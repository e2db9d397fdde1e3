"""What a study found: a number with n, interval and p, and the sentence that says it. One function a kind of `find`."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from normloss.analysis.kinds import Best, Difference, Early, Find, Misset, Range, Time
from normloss.analysis.render import between, number, probability
from normloss.analysis.select import SYMBOLS, as_number, spelled, value_of
from normloss.analysis.stats import FEWEST, Paired, bootstrap, paired, summarize
from normloss.analysis.study import side
from normloss.errors import UserError
from normloss.runs.records import RunRecord

UNITS = {"test_error": "points", "test_error_top5": "points", "train_error": "points", "test_accuracy": "points"}
UNITS |= {"train_ce": "nats", "test_ce": "nats"}
WORDS = {"test_error": "test error", "train_ce": "training cross entropy", "test_ce": "test cross entropy"}
WORDS |= {"norm_mean": "mean filter norm", "turn_mean": "turn of a filter per epoch", "val_error": "validation error"}
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
        one = {"pairs of seeds": "pair of seeds", "seeds": "seed", "seeds per value": "seed per value"}
        return f"{self.n} {one[self.of] if self.n == 1 else self.of}"

    @property
    def sentence(self) -> str:
        if math.isnan(self.value):
            return f"{self.what}: {self.detail} (n = {self.count})."
        told = [] if math.isnan(self.low) else [f"95 % interval {self.interval}"]
        told += [f"n = {self.count}"]
        told += [] if math.isnan(self.p) else [f"p {'' if self.p < 0.001 else '= '}{probability(self.p)}"]
        told += ["too few for an interval"] if self.n < FEWEST else []
        said = [f"{self.what}: {self.result} ({', '.join(told)})", self.detail, self.reading]
        return f"{'; '.join(filter(None, said))}."

    @property
    def reading(self) -> str:
        """What the interval says in words."""
        if len(self.names) < 2:
            return ""
        if self.n < FEWEST or math.isnan(self.low) or self.low <= 0 <= self.high:
            return "which is lower cannot be told"
        return f"{self.names[0]} is {'lower' if self.high < 0 else 'higher'}"

    def against(self, expected: float, sign: int) -> str:
        """Whether value - expected has the claimed sign, or the choice is the expected one: holds, does not, cannot be
        told."""
        if self.n < FEWEST or (math.isnan(self.low) and not self.chosen):
            return "cannot be told"
        if self.chosen:
            return "holds" if set(self.chosen) == {expected} else "does not"
        low, high = sorted((sign * (self.low - expected), sign * (self.high - expected)))
        return "holds" if low > 0 else "does not" if high < 0 else "cannot be told"


def find(runs: pd.DataFrame, shown: Find) -> list[Finding]:
    """Of a study's finished runs; none where both sides are not there."""
    sides = [side(runs, words) if len(runs) else runs for words in shown.of]
    if any(some.empty for some in sides):
        return []
    names = [spell(words) for words in shown.of]
    found = [each for each in FIND[type(shown)](sides, names, shown) if each.n]
    chosen = " ".join(spelled(one) for values in shown.where.values() for one in values)
    return [replace(each, what=f"{chosen}: {each.what}") for each in found] if chosen else found


def spell(words: str) -> str:
    """ "reg=nl reg.lam_gamma=0" -> nl lam_gamma=0"""
    text = " ".join(word.removeprefix("reg=").removeprefix("reg.") for word in words.split())
    for plain, symbol in SYMBOLS.items():
        text = text.replace(plain, symbol)
    return text


# kinds -------------------------------------------------------------------------------------------


def difference(sides: list[pd.DataFrame], names: list[str], shown: Difference) -> list[Finding]:
    for some, words in zip(sides, shown.of, strict=True):
        if some["cell"].nunique() > 1:
            raise UserError(f"{shown.name}: {words} must name one setting, but its runs differ by more than the seed")
    values = [_by_seed(some, value_of(some, shown.y)) for some in sides]
    return [_paired(values, names, _word(shown.y), shown)]


def early(sides: list[pd.DataFrame], names: list[str], shown: Early) -> list[Finding]:
    least = 1 if shown.how == "mean" else 2
    values = []
    for some in sides:
        told = {run.config["seed"]: _before_first_drop(run, shown.y) for run in some["record"]}
        values.append(
            pd.Series({seed: _measure(y, shown.how) for seed, y in told.items() if len(y) >= least}, dtype=float)
        )
    mean = "mean" if shown.how == "mean" else "mean change per epoch of"
    what = f"{mean} {_word(shown.y)} before the first drop of lr"
    detail = ", ".join(f"{name} {number(some.mean(), '.3f')}" for name, some in zip(names, values, strict=True))
    return [_paired(values, names, what, shown, detail)]


def _measure(y: list[float], how: str) -> float:
    return float(np.mean(y) if how == "mean" else np.abs(np.diff(y)).mean())


def time(sides: list[pd.DataFrame], names: list[str], shown: Time) -> list[Finding]:
    """100 (seconds / seconds - 1) of each seed."""
    how = [some["record"].map(_how_it_ran) for some in sides]
    alike = sorted(set(how[0]) & set(how[1]), key=lambda one: (one[1], one[0]))
    if not alike:
        return []
    one, other = (_by_seed(some[of == alike[0]], some["seconds"]) for some, of in zip(sides, how, strict=True))
    both = one.index.intersection(other.index)
    s = summarize(100 * (one[both] / other[both] - 1))
    what = f"time of a run, {names[0]} to {names[1]}, on {alike[0][0]}"
    return [Finding(what, s.mean, "%", s.n, low=s.low, high=s.high, values=s.values, claim=shown.claim)]


def range_over(sides: list[pd.DataFrame], names: list[str], shown: Range) -> list[Finding]:
    """Largest minus smallest mean over the values that both have, of each method and of the first minus the second."""
    x, (one, other) = _shared(sides, shown)  # (seeds, values)
    if one.shape[1] < 2:
        return []
    seeds = len(one)
    spans = [_span(values.mean(axis=0)) for values in (one, other)]
    ends = [bootstrap(seeds, lambda s, v=values: _span(v[s].mean(axis=0))) for values in (one, other)]
    low, high = bootstrap(seeds, lambda s, t: _span(one[s].mean(axis=0)) - _span(other[t].mean(axis=0)), sides=2)
    p = paired([_span(row) for row in other], [_span(row) for row in one]).p
    told = [
        f"{name} {number(span, '.2f')}" + ("" if math.isnan(end[0]) else f" [{between(*end)}]")
        for name, span, end in zip(names, spans, ends, strict=True)
    ]
    what = f"{names[0]} − {names[1]}, range of the mean {_word(shown.y)} over {len(x)} values of {_axis(shown.x)}"
    detail = ", ".join(told) + (
        "; intervals: bootstrap over seeds; p: each seed's own range" if seeds >= FEWEST else ""
    )
    value, unit = spans[0] - spans[1], _unit(shown.y)
    found = Finding(what, value, unit, seeds, "seeds per value", low, high, p, detail)
    return [replace(found, claim=shown.claim, names=tuple(names))]


def misset(sides: list[pd.DataFrame], names: list[str], shown: Misset) -> list[Finding]:
    found = []
    for some, name in zip(sides, names, strict=True):
        x, values = _block(some, shown.x, shown.y)
        best = int(values.mean(axis=0).argmin())
        for times, word in ((shown.factor, "larger"), (1 / shown.factor, "smaller")):
            place = next((i for i, one in enumerate(x) if math.isclose(one, x[best] * times, rel_tol=1e-6)), None)
            if place is None:
                continue
            s = paired(values[:, best], values[:, place])
            what = f"{name}, {_word(shown.y)} lost by {_axis(shown.x)} {shown.factor:g} times {word} than its best"
            what = f"{what}, {x[best]:g}"
            end = (s.low, s.high, s.p)
            found.append(Finding(what, s.mean, _unit(shown.y), s.n, "seeds", *end, values=s.values, claim=shown.claim))
    return found


def best(sides: list[pd.DataFrame], names: list[str], shown: Best) -> list[Finding]:
    x, (one, other) = _shared(sides, shown)
    if len(x) < 2:
        return []
    means = one.mean(axis=0), other.mean(axis=0)
    ahead = [f"{value:g}" for value, mine, theirs in zip(x, *means, strict=True) if theirs < mine]
    places = [f"{x[int(mean.argmin())]:g} for {name}" for mean, name in zip(means, names, strict=True)]
    detail = f"{', '.join(places)}; {names[1]} is ahead of {names[0]} at {', '.join(ahead) or 'none'} of {len(x)}"
    what = f"best {_axis(shown.x)} by mean {_word(shown.y)}"
    chosen = tuple(x[int(mean.argmin())] for mean in means)
    return [Finding(what, NAN, "", len(one), "seeds per value", detail=detail, claim=shown.claim, chosen=chosen)]


FIND: dict[type[Find], Callable[..., list[Finding]]] = {  # (sides, names, shown)
    Difference: difference,
    Range: range_over,
    Misset: misset,
    Best: best,
    Early: early,
    Time: time,
}


# shared ------------------------------------------------------------------------------------------


def paired_by_seed(one: pd.DataFrame, other: pd.DataFrame, y: str = "test_error") -> Paired:
    """The paired test of one - other over the seeds that both have."""
    values = [_by_seed(some, value_of(some, y)) if len(some) else pd.Series(dtype=float) for some in (other, one)]
    seeds = values[0].index.intersection(values[1].index)
    return paired(*(some[seeds] for some in values))


def _paired(
    values: list[pd.Series], names: list[str], what: str, shown: Difference | Early, detail: str = ""
) -> Finding:
    seeds = values[0].index.intersection(values[1].index)
    s = paired(values[1][seeds], values[0][seeds])
    return Finding(
        f"{names[0]} − {names[1]}, {what}",
        s.mean,
        _unit(shown.y),
        s.n,
        low=s.low,
        high=s.high,
        p=s.p,
        detail=detail,
        values=s.values,
        claim=shown.claim,
        names=tuple(names),
    )


def _by_seed(runs: pd.DataFrame, values: pd.Series) -> pd.Series:
    return pd.Series(values[runs.index].to_numpy(float), index=runs["seed"].to_numpy(int)).sort_index()


def _block(runs: pd.DataFrame, x: str, y: str) -> tuple[list[float], np.ndarray]:
    """The values of x and y of the seeds that have all of them, (seeds, values)."""
    table = pd.DataFrame(
        {
            "x": [as_number(x, value) for value in runs[x]],
            "seed": runs["seed"].to_numpy(int),
            "y": value_of(runs, y).to_numpy(float),
        }
    )
    if table.duplicated(["x", "seed"]).any():
        raise UserError(f"{x}: the runs differ by more than it and the seed; choose with where")
    wide = table.pivot(index="seed", columns="x", values="y").dropna()
    return list(wide.columns), wide.to_numpy(float)


def _shared(sides: list[pd.DataFrame], shown: Range | Best) -> tuple[list[float], list[np.ndarray]]:
    """Over the values of x and the seeds that both sides have."""
    values = set(sides[0][shown.x]) & set(sides[1][shown.x])
    sides = [some[some[shown.x].isin(values)] for some in sides]
    whole = set.intersection(*(_whole_seeds(some, shown.x, len(values)) for some in sides))
    if not whole:
        return [], [np.empty((0, 0))] * 2
    blocks = [_block(some[some["seed"].isin(whole)], shown.x, shown.y) for some in sides]
    return blocks[0][0], [block[1] for block in blocks]


def _whole_seeds(runs: pd.DataFrame, x: str, values: int) -> set[int]:
    counts = runs.groupby("seed")[x].nunique()
    return set(counts[counts == values].index)


def _span(values: np.ndarray) -> float:
    return float(values.max() - values.min())


def _how_it_ran(run: RunRecord) -> tuple[str, int]:
    """Device, and how many runs shared it as one process."""
    return run.meta.get("device_name", "?"), run.meta.get("together", 1)


def _before_first_drop(run: RunRecord, y: str) -> list[float]:
    milestones = run.config["train"]["milestones"]
    epochs = run.epochs[: milestones[0]] if milestones else run.epochs
    return [100 - epoch["test_error"] if y == "test_accuracy" else epoch[y] for epoch in epochs]


def _word(y: str) -> str:
    return WORDS.get(y, y)


def _unit(y: str) -> str:
    return UNITS.get(y, "")


def _axis(x: str) -> str:
    return {"reg.lam": "λ", "train.batch_size": "batch size", "train.lr": "lr"}.get(x, x)
