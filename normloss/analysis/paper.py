"""The paper's numbers (results/paper.yaml), and the runs of ours that stand beside each."""

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from normloss.analysis.render import number
from normloss.analysis.select import in_tf32, one_precision
from normloss.config import Config
from normloss.sweeps.composing import expand

FILE = Path(__file__).resolve().parent.parent.parent / "results" / "paper.yaml"


@dataclass(frozen=True)
class Cell:
    """Runs that differ by seed only, as the command line names them."""

    overrides: tuple[str, ...]

    @property
    def config(self) -> Config:
        return _compose(self.overrides)

    def runs(self, df: pd.DataFrame) -> pd.DataFrame:
        """Those of `df`, by seed, whatever their state; in fp32 or, where more of them are done, in tf32 (D21)."""
        for key in ("dataset", "model"):  # nothing is composed where no run can be one of these
            names = [word.partition("=")[2] for word in self.overrides if word.startswith(f"{key}=")]
            if names and len(df):
                df = df[df[f"{key}.name"].isin(names)]
        return one_precision(df[df["place"] == self.config.place]).sort_values("seed") if len(df) else df

    def done(self, df: pd.DataFrame) -> pd.DataFrame:
        runs = self.runs(df)
        return runs[runs["state"] == "done"]

    def missing(self, df: pd.DataFrame, seeds: int) -> list[int]:
        """The seeds 0 .. seeds-1 that are not done; none where as many others are."""
        done = set(self.done(df)["seed"])
        return [seed for seed in range(seeds) if seed not in done][: max(0, seeds - len(done))]

    def command(self, seeds: list[int], df: pd.DataFrame) -> str:
        """What trains these seeds, in the precision of those that are done."""
        words = " ".join([*self.overrides, *(["train.precision=tf32"] if in_tf32(self.done(df)) else [])])
        return f"python train.py {'-m ' if len(seeds) > 1 else ''}{words} seed={','.join(map(str, seeds))}"


@cache
def _compose(overrides: tuple[str, ...]) -> Config:
    (cfg,) = expand([*overrides])
    return cfg


@dataclass(frozen=True)
class Row:
    """A row of one of the paper's tables; errors in percent, None where the paper gives none."""

    model: str
    method: str
    quoted: int | None  # the reference it was taken from; None: the paper's own run
    values: dict[str, float]  # best and mean, or top1 and top5
    cell: Cell | None  # None: a row before it is the same setting

    def done(self, df: pd.DataFrame) -> pd.DataFrame:
        """Our finished runs of it; none where a row before it has them."""
        return self.cell.done(df) if self.cell else df.iloc[:0]


@dataclass(frozen=True)
class PaperTable:
    name: str
    title: str
    section: str
    seeds: int
    rows: list[Row]

    def row(self, model: str, method: str) -> Row:
        """The paper's own row."""
        return next(row for row in self.rows if (row.model, row.method, row.quoted) == (model, method, None))

    def difference(self, model: str) -> float:
        """nl - wd of the means, or of the one run's top-1 errors."""
        wd, nl = self.row(model, "wd").values, self.row(model, "nl").values
        key = "mean" if "mean" in nl else "top1"
        return nl[key] - wd[key]


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper's text and the number it gives; it is supported by values on this side of `expected`."""

    name: str
    section: str
    says: str
    number: str
    sign: int
    expected: float


class Paper:
    """results/paper.yaml, typed."""

    def __init__(self, file: Path = FILE) -> None:
        self.raw: dict[str, Any] = yaml.safe_load(file.read_text())

    @cached_property
    def tables(self) -> dict[str, PaperTable]:
        return {name: self._table(name, raw) for name, raw in self.raw["tables"].items()}

    @property
    def cells(self) -> list[Cell]:
        """Of every row that has a run of ours."""
        return [row.cell for table in self.tables.values() for row in table.rows if row.cell]

    @property
    def text(self) -> dict[str, Any]:
        return self.raw["text"]

    @cached_property
    def claims(self) -> dict[str, Claim]:
        return {name: self._claim(name, raw) for name, raw in self.raw["claims"].items()}

    def _claim(self, name: str, raw: dict[str, Any]) -> Claim:
        sign, expected, said = -1, raw.get("best", 0.0), raw.get("number", "")
        if "row" in raw:
            table, model = raw["row"]
            difference = self.tables[table].difference(model)
            sign = 1 if difference > 0 else -1
            said = f"{model} {number(difference, '+.3f')}"
        elif "hours" in raw:
            expected = 100 * (self.text["hours"]["nl"] / self.text["hours"]["wd"] - 1)
            said = f"{self.text['hours']['nl']} h / {self.text['hours']['wd']} h: +{expected:.2f} %"
        return Claim(name, raw["section"], raw["says"], said, sign, expected)

    def _table(self, name: str, raw: dict[str, Any]) -> PaperTable:
        rows = []
        for row in raw["rows"]:
            values = {key: row[key] for key in ("best", "mean", "top1", "top5") if key in row}
            cell = Cell((*raw["overrides"], *row["run"])) if "run" in row else None
            rows.append(Row(row["model"], row["method"], row.get("quoted"), values, cell))
        return PaperTable(name, raw["title"], raw["section"], raw.get("seeds", self.raw["seeds"]), rows)
