"""Every table, figure and finding of the studies, made of whatever runs there are and written to results/."""

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from normloss.analysis import figures, overhead, ranking, ranking_figures, style
from normloss.analysis.entries import Entry, Find, PaperRows
from normloss.analysis.findings import Finding
from normloss.analysis.paper import Paper
from normloss.analysis.ranking import Ranking
from normloss.analysis.render import Table
from normloss.analysis.select import done, load, where
from normloss.analysis.show import SavedFigure, save, show
from normloss.analysis.study import Study, read_studies
from normloss.analysis.tables import claims, trained_by
from normloss.config import CONFIGS
from normloss.errors import UserError
from normloss.runs.records import existing_folder

ROOT = CONFIGS.parent


Made = Table | SavedFigure | str  # str: a line in place of a figure that no run fills yet


class Results:
    """The runs of a store and of results/, this repository's where none is given, and what the studies make of them."""

    def __init__(self, store: Path | None = None, results: Path | None = None) -> None:
        self.folder = existing_folder(results.resolve()) if results else ROOT / "results"
        self.local = self.folder / "compare"  # not in git: gets what is this machine's only
        self.store = existing_folder(store) if store else ROOT / "results" / "runs"
        self.df: pd.DataFrame = load(self.store, self.folder)
        self.paper = Paper()
        self.studies = read_studies()
        self._found: dict[str, list[Finding]] = {}
        for study in self.studies.values():
            for entry in study.show:
                if isinstance(entry, Find) and entry.claim and entry.claim not in self.paper.claims:
                    known = " ".join(self.paper.claims)
                    raise UserError(f"{study.name}.yaml: claim: must be one of {known}, got {entry.claim}")
                if isinstance(entry, PaperRows) and entry.name not in self.paper.tables:
                    raise UserError(f"{study.name}.yaml: table: paper: results/paper.yaml has no {entry.name}")

    # runs ----------------------------------------------------------------------------------------

    @cached_property
    def own(self) -> dict[str, pd.DataFrame]:
        """The runs of each study's own sweep, whatever their state, by its name."""
        return {name: study.runs(self.df) for name, study in self.studies.items()}

    def runs(self, study: Study) -> pd.DataFrame:
        """Return a study's runs, whatever their state, with those of other experiments that it borrows."""
        parts = [self.own[study.name]]
        for each in study.section.beside:
            others = self.own[each.experiment]
            parts.append(where(others, each.where) if all(key in others for key in each.where) else others.iloc[:0])
        return pd.concat(parts).drop_duplicates("id") if len(parts) > 1 else parts[0]

    @cached_property
    def with_runs(self) -> list[Study]:
        """The studies that have finished runs of their own, in the order of a report."""
        return [study for study in self.studies.values() if len(done(self.own[study.name]))]

    @cached_property
    def rankings(self) -> list[Ranking]:
        """The rankings that experiments' files ask for, and earlier ones that are kept."""
        return ranking.rankings(self.df, self.folder)

    # what is made of them ------------------------------------------------------------------------

    def show(self, study: Study, entry: Entry) -> Table | Figure | list[Finding] | None:
        """Return what an entry of a study makes of its runs; a UserError names the experiment's file."""
        try:
            return show(entry, self.df if isinstance(entry, PaperRows) else self.runs(study), self.paper, study)
        except UserError as error:
            raise UserError(f"{study.name}.yaml: {error}") from None

    def findings(self, study: Study) -> list[Finding]:
        if study.name not in self._found:
            found = [self.show(study, entry) for entry in study.show if isinstance(entry, Find)]
            self._found[study.name] = [each for some in found if isinstance(some, list) for each in some]
        return self._found[study.name]

    def claims(self) -> Table:
        """Return the table of the paper's claims and the findings that test them."""
        found: dict[str, list[tuple[str, Finding]]] = {}
        for study in (study for study in self.studies.values() if not study.section.local):
            for each in self.findings(study):
                found.setdefault(each.claim or "", []).append((study.section.title, each))
        trained = [
            line
            for claim in self.paper.claims
            for title, each in found.get(claim, [])
            for line in trained_by(self._with_ids(each.runs), f"{title}, {each.what}: ")
        ]
        return replace(claims(found, self.paper.claims.values()), trained=trained)

    # written -------------------------------------------------------------------------------------

    def made(self, study: Study, folder: str = "") -> list[Made]:
        """Return a study's tables and figures, or those of one folder, written, in the order of its file."""
        entries = [entry for entry in study.show if entry.folder in ("tables", "figures")]
        return [self._written(study, entry) for entry in entries if not folder or entry.folder == folder]

    def _written(self, study: Study, entry: Entry) -> Made:
        made = self.show(study, entry)
        line = f"no finished run yet; to fill: `{study.command}`"
        if made is None and entry.folder == "tables":
            made = Table(entry.name, entry.title, [], [], [], [line])
        out = self.local if study.section.local else self.folder
        return save(made, entry.name, out) if isinstance(made, (Table, Figure)) else _missing(entry.name, line, out)

    def ranked(self, of: Ranking, local: bool = False) -> list[Made]:
        """Return a ranking's table and figures, written."""
        out = self.local if local else self.folder
        ids = {one.method: [run.id for run in one.finals] for one in of.methods}
        trained = [line for name, own in ids.items() for line in trained_by(self._with_ids(own), f"{name}: ")]
        table = replace(ranking.table(of, self.folder / "bench"), trained=trained)
        made: dict[str, Table | Figure] = {"": table, **ranking_figures.draw(of)}
        return [save(each, name, out) for name, each in made.items()]

    def _with_ids(self, ids: Iterable[str]) -> pd.DataFrame:
        return self.df[self.df["id"].isin(ids)]

    def general(self) -> list[Made]:
        """Return the two tables and two figures that belong to no study, written."""
        bench, missing = self.folder / "bench", "nothing measured yet; to fill: `python scripts/bench.py overhead`"
        with style.look():
            fig1, cost = figures.fig1(), overhead.cost(bench)
        return [
            save(self.claims(), "", self.folder),
            save(overhead.table(bench, self.paper), "", self.folder),
            save(cost, "cost", self.folder) if cost else _missing("cost", missing, self.folder),
            save(fig1, "fig1", self.folder),
        ]


def _missing(name: str, line: str, out: Path) -> str:
    """Return the line in place of a figure, no file of which stays."""
    for suffix in ("png", "pdf"):
        (out / "figures" / f"{name}.{suffix}").unlink(missing_ok=True)
    return f"{name}: {line}"
