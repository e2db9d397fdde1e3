"""One function from an entry of `show` and runs to a table, figure or findings; everything that shows runs calls it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from normloss.analysis import entries, figures, findings, select, style, tables
from normloss.analysis.entries import Entry, Find, PaperRows, Plot
from normloss.analysis.findings import Finding
from normloss.analysis.paper import Paper
from normloss.analysis.render import Table
from normloss.analysis.study import Study

MAKERS: dict[type[Entry], Callable[..., Any]] = {
    entries.Over: figures.over,
    entries.Curves: figures.curves,
    entries.Training: figures.training,
    entries.Heatmap: figures.heatmap,
    entries.Layers: figures.by_layer,
    entries.Methods: tables.methods,
    entries.Points: tables.points,
    entries.Difference: findings.difference,
    entries.Early: findings.early,
    entries.Time: findings.time,
    entries.Range: findings.range_over,
    entries.Each: findings.each,
    entries.Misset: findings.misset,
    entries.Best: findings.best,
}


def show(
    entry: Entry, df: pd.DataFrame, paper: Paper, study: Study | None = None
) -> Table | Figure | list[Finding] | None:
    """Return what an entry asks for, of the runs of `df` that it takes; None for a table or figure without any.

    df: runs of any state, of which the finished ones count; those that diverged are counted in words.
    """
    if isinstance(entry, PaperRows):
        return tables.paper_table(paper.tables[entry.name], df)
    df = select.ended(df)
    # keys were checked when the file was read: one that no run has is another method's
    df = select.where(df, entry.where) if all(key in df for key in entry.where) else df.iloc[:0]
    finished = select.done(df)
    if isinstance(entry, Find):
        assert study  # only an experiment's file asks for findings
        return findings.find(MAKERS[type(entry)], finished, entry, study)
    if finished.empty:
        return None
    if not isinstance(entry, Plot):
        return MAKERS[type(entry)](df, entry)
    with style.look():
        fig = MAKERS[type(entry)](finished, entry)
        lost = select.describe_diverged(df, [*(getattr(entry, axis) for axis in entry.AXES), *entry.by])
        if lost:
            style.title(fig, f"{fig.get_suptitle()}. {lost}")
    return fig


# written -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SavedFigure:
    """A figure that was written; a notebook shows it."""

    name: str
    png: Path

    def _repr_png_(self) -> bytes:
        return self.png.read_bytes()


def save(made: Table | Figure, name: str, out: Path) -> Table | SavedFigure:
    """Write a table to OUT/tables or a figure to OUT/figures."""
    if isinstance(made, Table):
        made.save(out / "tables")
        return made
    with style.look():
        style.save(made, out / "figures" / name)
    return SavedFigure(name, out / "figures" / f"{name}.png")
