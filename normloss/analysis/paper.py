"""The paper's numbers and claims (results/paper.yaml), and the runs of ours that stand next to each."""

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import pandas as pd
import yaml

from normloss.analysis.render import number
from normloss.analysis.select import done, in_tf32, trained_as
from normloss.config import CONFIGS
from normloss.sweeps.composing import expand

_composed = cache(expand)


@dataclass(frozen=True)
class Cell:
    """Runs that differ by seed only, as the command line names them."""

    overrides: tuple[str, ...]

    def runs(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return its runs of `df` by seed, whatever their state, in one precision (D21)."""
        words = (word.partition("=") for word in self.overrides)
        names = {key: [name] for key, _, name in words if key in ("dataset", "model")}
        return trained_as(df, names, lambda: _composed(self.overrides)).sort_values("seed")

    def done(self, df: pd.DataFrame) -> pd.DataFrame:
        return done(self.runs(df))

    def missing(self, df: pd.DataFrame, seeds: int) -> list[int]:
        """Return the seeds 0 .. seeds-1 that are not done; none where as many others are."""
        there = set(self.done(df)["seed"])
        return [seed for seed in range(seeds) if seed not in there][: max(0, seeds - len(there))]

    def command(self, seeds: list[int], df: pd.DataFrame) -> str:
        """Return what trains these seeds, in the precision of those that are done."""
        words = " ".join([*self.overrides, *(["train.precision=tf32"] if in_tf32(self.done(df)) else [])])
        return f"python train.py {'-m ' if len(seeds) > 1 else ''}{words} seed={','.join(map(str, seeds))}"


@dataclass(frozen=True)
class PaperRow:
    """A row of one of the paper's tables; errors in percent."""

    model: str
    method: str
    quoted: int | None  # the reference it was taken from; None: the paper's own run
    values: dict[str, float]  # best and mean, or top1 and top5, as far as the paper gives them
    cell: Cell | None
    without: str  # what stands in place of our runs where there is no cell

    def done(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return our finished runs of it; none where it has no cell."""
        return self.cell.done(df) if self.cell else df.iloc[:0]


@dataclass(frozen=True)
class PaperTable:
    name: str
    title: str
    seeds: int
    rows: list[PaperRow]

    def row(self, model: str, method: str) -> PaperRow:
        """Return the paper's own row."""
        return next(row for row in self.rows if (row.model, row.method, row.quoted) == (model, method, None))

    def difference(self, model: str, key: str = "") -> float:
        """Return nl - wd of the means, or of the one run's top-1 (or top-5) errors."""
        wd, nl = self.row(model, "wd").values, self.row(model, "nl").values
        key = key or ("mean" if "mean" in nl else "top1")
        return nl[key] - wd[key]


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper's text and the number it gives.

    It is supported by a value that differs from `expected` by this sign, or by a choice that equals it.
    """

    name: str
    section: str
    says: str
    number: str
    sign: int
    expected: Any
    note: str
    elsewhere: str


class Paper:
    """results/paper.yaml, typed."""

    def __init__(self) -> None:
        raw: dict[str, Any] = yaml.safe_load((CONFIGS.parent / "results" / "paper.yaml").read_text())
        self.title: str = raw["paper"]
        self.text: dict[str, Any] = raw["text"]
        self.tables = {name: _table(name, one, raw["seeds"]) for name, one in raw["tables"].items()}
        self.claims = {name: self._claim(name, one) for name, one in raw["claims"].items()}

    @cached_property
    def cells(self) -> list[Cell]:
        """The cells of every row that has a run of ours."""
        return [row.cell for table in self.tables.values() for row in table.rows if row.cell]

    def _claim(self, name: str, raw: dict[str, Any]) -> Claim:
        sign, expected, text = -1, raw.get("best", 0.0), raw.get("number", "")
        if "row" in raw:
            table, *which = raw["row"]
            difference = self.tables[table].difference(*which)
            sign = 1 if difference > 0 else -1
            text = f"{' '.join(which)} {number(difference, '+.3f')}"
        elif "hours" in raw:
            hours = self.text["hours"]
            expected = 100 * (hours["nl"] / hours["wd"] - 1)
            text = f"{hours['nl']} h / {hours['wd']} h: +{expected:.2f} %"
        more = {key: raw.get(key, "") for key in ("note", "elsewhere")}
        return Claim(name, raw["section"], raw["says"], text, sign, expected, **more)


def _table(name: str, raw: dict[str, Any], seeds: int) -> PaperTable:
    rows = []
    for row in raw["rows"]:
        values = {key: row[key] for key in ("best", "mean", "top1", "top5") if key in row}
        cell = Cell((*raw["overrides"], *row["run"])) if "run" in row else None
        without = f"not run ({row['not_run']})" if "not_run" in row else "as wd above"
        rows.append(PaperRow(row["model"], row["method"], row.get("quoted"), values, cell, without))
    return PaperTable(name, raw["title"], raw.get("seeds", seeds), rows)
