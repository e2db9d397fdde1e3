"""Every table and figure by name, made from whatever runs there are and written to results/."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from normloss.analysis import claims, extras, figures, style, tables
from normloss.analysis.paper import Paper
from normloss.analysis.render import Table
from normloss.analysis.select import load
from normloss.analysis.studies import MINI, PAPER, STUDIES, Study
from normloss.config import CONFIGS

ROOT = CONFIGS.parent
OF_EACH_STUDY = {  # the order of a report
    "fig2": figures.fig2,
    "fig3": figures.fig3,
    "fig4": figures.fig4,
    "fig5": figures.fig5,
    "fig6": figures.fig6,
    "layer_norms": extras.layer_norms,
    "wall_time": extras.wall_time,
    "heatmap": extras.heatmap,
    "nl_anneal": extras.anneal,
}


@dataclass(frozen=True)
class Picture:
    """A figure that was written; a notebook shows it."""

    name: str
    png: Path

    def _repr_png_(self) -> bytes:
        return self.png.read_bytes()


class Book:
    """The runs of a store and of results/, and what is made of them.

    Where nothing is given: NORMLOSS_STORE and NORMLOSS_RESULTS of the environment, else this repository's.
    """

    def __init__(self, store: Path | None = None, results: Path | None = None) -> None:
        self.results = Path(results or os.environ.get("NORMLOSS_RESULTS") or ROOT / "results")
        self.store = Path(store or os.environ.get("NORMLOSS_STORE") or ROOT / "results" / "runs")
        self.df: pd.DataFrame = load(self.store, self.results)
        self.paper = Paper()
        self.tables: dict[str, Callable[[], Table]] = self._tables()
        self.figures: dict[str, Callable[[], Figure]] = self._figures()

    def _tables(self) -> dict[str, Callable[[], Table]]:
        makers = {name: partial(tables.paper_table, table, self.df) for name, table in self.paper.tables.items()}
        for study in STUDIES:
            makers[f"{study.prefix}claims"] = partial(claims.claims, self.df, study, self.paper)
            makers[f"{study.prefix}nl_anneal"] = partial(extras.anneal_table, self.df, study)
        makers["mini_table1"] = partial(_compare, self.df, MINI, ("wd", "nl"), "mini_table1", "Table I")
        makers["mini_methods"] = partial(_compare, self.df, MINI, None, "mini_methods", "Every method")
        return makers

    def _figures(self) -> dict[str, Callable[[], Figure]]:
        makers: dict[str, Callable[[], Figure]] = {"fig1": figures.fig1}
        for study in STUDIES:
            for name, draw in OF_EACH_STUDY.items():
                makers[study.prefix + name] = partial(draw, self.df, study)
        makers["cost"] = partial(extras.cost, self.results / "bench")
        makers["mini_methods"] = partial(extras.methods, self.df, MINI)
        makers["methods"] = partial(extras.methods, self.df, PAPER)
        return makers

    def table(self, name: str) -> Table:
        """Made anew, and written to results/tables."""
        table = self.tables[name]()
        table.save(self.results / "tables")
        return table

    def figure(self, name: str) -> Picture:
        """Drawn anew, and written to results/figures."""
        path = self.results / "figures" / name
        style.save(self.figures[name](), path)
        return Picture(name, path.with_name(f"{name}.png"))


def _compare(df: pd.DataFrame, study: Study, methods: tuple[str, ...] | None, name: str, title: str) -> Table:
    """The methods side by side, of all that were run where all methods were."""
    runs = extras.every_method(df, study)
    chosen = [some for method, some in runs.items() if methods is None or method in methods]
    title = "; ".join(filter(None, [title, study.title]))
    if not chosen:
        command = f"python train.py experiment={name}"
        return Table(name, title, tables.COMPARISON, [], [f"No finished run yet; to fill: `{command}`."])
    return tables.comparison(pd.concat(chosen), name, title)
