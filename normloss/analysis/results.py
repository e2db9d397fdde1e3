"""Every table, figure and finding by name, made of whatever runs there are and written to results/."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from matplotlib.figure import Figure

from normloss.analysis import comparisons, figures, overhead, ranking, ranking_figures, select, style, tables
from normloss.analysis.claims import claims
from normloss.analysis.findings import Finding, find
from normloss.analysis.kinds import Compare, Find, PaperRows, Points, Shown
from normloss.analysis.paper import Paper
from normloss.analysis.ranking import Ranking
from normloss.analysis.render import Table
from normloss.analysis.select import done, load
from normloss.analysis.study import Study, read_studies
from normloss.config import CONFIGS
from normloss.errors import UserError

ROOT = CONFIGS.parent
T = TypeVar("T")


@dataclass(frozen=True)
class SavedFigure:
    """A figure that was written; a notebook shows it."""

    name: str
    png: Path

    def _repr_png_(self) -> bytes:
        return self.png.read_bytes()


@dataclass(frozen=True)
class MissingFigure:
    """A figure that no run fills yet: one line."""

    name: str
    command: str

    @property
    def text(self) -> str:
        return f"{self.name}: no finished run yet; to fill: `{self.command}`"

    def _repr_markdown_(self) -> str:
        return self.text


class Results:
    """The runs of a store and of results/, and what the experiments' files make of them.

    Where nothing is given: NORMLOSS_STORE and NORMLOSS_RESULTS of the environment, else this repository's.
    """

    def __init__(self, store: Path | None = None, results: Path | None = None) -> None:
        self.folder = _folder(results, "NORMLOSS_RESULTS", ROOT / "results")
        self.store = _folder(store, "NORMLOSS_STORE", ROOT / "results" / "runs")
        self.df: pd.DataFrame = load(self.store, self.folder)
        self.paper = Paper()
        self.studies = read_studies()
        self._runs: dict[str, pd.DataFrame] = {}
        self._made: dict[str, Table] = {}
        self._found: dict[str, list[Finding]] = {}
        self._checked()

    def _checked(self) -> None:
        for study in self.studies.values():
            for each in study.beside:
                if each.experiment not in self.studies:
                    raise UserError(f"{study.name}.yaml: beside: no such experiment, got {each.experiment}")
            for shown in study.show:
                if isinstance(shown, Find) and shown.claim and shown.claim not in self.paper.claims:
                    known = " ".join(self.paper.claims)
                    raise UserError(f"{study.name}.yaml: claim: must be one of {known}, got {shown.claim}")
                if isinstance(shown, PaperRows) and shown.name not in self.paper.tables:
                    raise UserError(f"{study.name}.yaml: table: paper: results/paper.yaml has no {shown.name}")

    # runs ----------------------------------------------------------------------------------------

    def own(self, study: Study) -> pd.DataFrame:
        """The runs of a study's own sweep, whatever their state."""
        if study.name not in self._runs:
            self._runs[study.name] = study.runs(self.df)
        return self._runs[study.name]

    def runs(self, study: Study, shown: Shown | None = None) -> pd.DataFrame:
        """Its finished runs and those of other experiments that stand beside them; of `shown`, those that it takes."""
        return done(self._ended(study, shown))

    def _ended(self, study: Study, shown: Shown | None = None) -> pd.DataFrame:
        """These, and those that diverged."""
        parts = [select.ended(self.own(study))]
        for each in study.beside:
            others = select.ended(self.own(self.studies[each.experiment]))
            parts.append(_where(others, each.where))
        df = pd.concat(parts).drop_duplicates("id") if len(parts) > 1 else parts[0]
        return _where(df, shown.where) if shown else df

    @cached_property
    def with_runs(self) -> list[Study]:
        """The studies that have finished runs of their own, in the order of a report."""
        return [study for study in self.studies.values() if len(done(self.own(study)))]

    @cached_property
    def rankings(self) -> list[Ranking]:
        """The comparisons of methods that experiments' files ask for, those of which a method is tried to the end."""
        return comparisons.rankings(self.df)

    # what is made of them ------------------------------------------------------------------------

    @cached_property
    def tables(self) -> dict[str, Callable[[], Table]]:
        made: dict[str, Callable[[], Table]] = {}
        for study in self.studies.values():
            wanted = [one for one in study.show if one.folder == "tables"]
            made |= {one.name: partial(_of_file, study, self._table, study, one) for one in wanted}
        made["claims"] = lambda: claims(self.claimed(), self.paper)
        made["operations"] = lambda: overhead.table(self.folder / "bench")
        return made

    def _table(self, study: Study, shown: Shown) -> Table:
        if isinstance(shown, PaperRows):
            return tables.paper_table(self.paper.tables[shown.name], self.df)
        df = self._ended(study, shown)
        if done(df).empty:
            return Table(shown.name, shown.title, [], [], [], [f"no finished run yet; to fill: `{study.command}`"])
        if isinstance(shown, Points):
            return tables.points(df, shown.x, shown.y, shown.name, shown.title, shown.by)
        assert isinstance(shown, Compare)
        return tables.comparison(df, shown.name, shown.title, shown.by)

    @cached_property
    def figures(self) -> dict[str, Callable[[], Figure | MissingFigure]]:
        made: dict[str, Callable[[], Figure | MissingFigure]] = {"fig1": figures.fig1}
        for study in self.studies.values():
            wanted = [one for one in study.show if one.folder == "figures"]
            made |= {one.name: partial(_of_file, study, self._figure, study, one) for one in wanted}
        made["cost"] = lambda: (
            overhead.cost(self.folder / "bench") or MissingFigure("cost", "python scripts/bench.py overhead")
        )
        return made

    def _figure(self, study: Study, shown: Shown) -> Figure | MissingFigure:
        return self.lacks(study, shown) or figures.draw(self._ended(study, shown), shown)

    def lacks(self, study: Study, shown: Shown) -> MissingFigure | None:
        """What says that nothing can be drawn of `shown` yet."""
        return MissingFigure(shown.name, study.command) if self.runs(study, shown).empty else None

    def findings(self, study: Study) -> list[Finding]:
        if study.name not in self._found:
            asked = [shown for shown in study.show if isinstance(shown, Find)]
            found = [_of_file(study, find, self.runs(study, shown), shown) for shown in asked]
            self._found[study.name] = [each for some in found for each in some]
        return self._found[study.name]

    def claimed(self) -> dict[str, list[tuple[str, Finding]]]:
        """claim -> the findings that test it, with the title of their study."""
        found: dict[str, list[tuple[str, Finding]]] = {}
        for study in self.studies.values():
            for each in self.findings(study):
                if each.claim:
                    found.setdefault(each.claim, []).append((study.title, each))
        return found

    # written -------------------------------------------------------------------------------------

    def table(self, name: str) -> Table:
        """Made of the runs, and written to results/tables."""
        if name not in self._made:
            self._made[name] = self.tables[name]()
            self._made[name].save(self.folder / "tables")
        return self._made[name]

    def figure(self, name: str) -> SavedFigure | MissingFigure:
        """Drawn anew, and written to results/figures; where no run fills it, no file of it stays."""
        path = self.folder / "figures" / name
        with style.look():
            made = self.figures[name]()
            if isinstance(made, Figure):
                style.save(made, path)
                return SavedFigure(name, path.with_name(f"{name}.png"))
        for suffix in ("png", "pdf"):
            path.with_name(f"{name}.{suffix}").unlink(missing_ok=True)
        return made

    def compared(self, of: Ranking) -> tuple[Table, list[SavedFigure]]:
        """A comparison's table and figures, drawn anew, and written to results/."""
        shown, folder = ranking.table(of), self.folder / "figures"
        shown.save(self.folder / "tables")
        return shown, [SavedFigure(name, folder / f"{name}.png") for name in ranking_figures.save(of, folder)]

    def everything(self, *studies: str) -> list[SavedFigure | MissingFigure | Table]:
        """Every table and figure of these studies, in the order of their files."""
        made: list[SavedFigure | MissingFigure | Table] = []
        for name in studies:
            for shown in self.studies[name].show:
                if not isinstance(shown, Find):
                    made.append(self.table(shown.name) if shown.folder == "tables" else self.figure(shown.name))
        return made


def _folder(given: Path | None, variable: str, default: Path) -> Path:
    """Absolute: a notebook's kernel runs elsewhere. UserError for one that was asked for and is not there."""
    asked = given or os.environ.get(variable)
    path = Path(asked or default).expanduser().resolve()
    if asked and not path.is_dir():
        raise UserError(f"{variable.removeprefix('NORMLOSS_').lower()}: no such folder, got {asked}")
    return path


def _of_file(study: Study, make: Callable[..., T], *arguments: Any) -> T:
    """What `make` makes; a UserError names the experiment's file."""
    try:
        return make(*arguments)
    except UserError as error:
        raise UserError(f"{study.name}.yaml: {error}") from None


def _where(df: pd.DataFrame, conditions: dict) -> pd.DataFrame:
    # keys were checked when the file was read: one that no run has is another method's
    return select.where(df, conditions) if all(key in df for key in conditions) else df.iloc[:0]
