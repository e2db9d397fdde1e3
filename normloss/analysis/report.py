"""The report: what was asked, run, found and is missing. One list of sections, as an HTML page and as Markdown.

The HTML page is of this machine: hours, devices, unfinished and truncated runs are only there. What git keeps,
results/README.md, docs/findings.md and the headline in README.md, is the same wherever the same finished runs are.
"""

import base64
import math
import re
import struct
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import yaml

from normloss import __version__
from normloss.analysis import ranking
from normloss.analysis.ranking import Ranking, headline
from normloss.analysis.render import TRAINED, Column, Table, folded, plain, probability
from normloss.analysis.results import ROOT, Made, Results
from normloss.analysis.select import done
from normloss.analysis.show import SavedFigure
from normloss.analysis.study import Study
from normloss.analysis.tables import trained_by
from normloss.config import identity, labels
from normloss.runs import provenance
from normloss.runs.files import write_whole
from normloss.training.durations import spell

MARKERS = ("<!-- headline -->", "<!-- /headline -->")
FOUND = (
    plain("study"),
    plain("found"),
    plain("result", "result (95 % interval)"),
    plain("reading"),
    Column("p", lambda row: probability(row["p"])),
    plain("runs"),
)


@dataclass(frozen=True)
class Section:
    """A study or a ranking."""

    name: str
    title: str
    question: str
    command: str
    ran: str  # empty where no run is finished
    missing: int  # runs
    planned: int
    found: list[str]  # a sentence for each finding
    answers: list[str]  # sentences of the study's file: what follows from the findings, and their limits
    made: list[Made]  # in the order of the file
    local: bool = False
    took: str = ""  # on this machine
    states: list[str] = field(default_factory=list)  # of unfinished runs

    @property
    def tables(self) -> list[Table]:
        return [each for each in self.made if isinstance(each, Table) and each.rows]

    @property
    def figures(self) -> list[SavedFigure]:
        return [each for each in self.made if isinstance(each, SavedFigure)]


def sections(results: Results) -> list[Section]:
    """Return the studies and the rankings; draws and writes all they show."""
    studies = [_of_study(results, study) for study in results.studies.values()]
    return [*studies, *(_of_ranking(results, each) for each in results.rankings)]


def _of_study(results: Results, study: Study) -> Section:
    runs = results.own[study.name]
    finished = done(runs)
    devices = sorted({record.meta.get("device_name", "?") for record in finished["record"]})
    seeds = labels.counted(finished["seed"].nunique(), "seed")
    ran = f"{labels.counted(len(finished), 'finished run')} of {seeds}, {study.size} planned"
    return Section(
        name=study.name,
        title=study.section.title,
        question=study.section.question,
        command=study.command,
        ran=ran if len(finished) else "",
        missing=study.missing(results.df),
        planned=study.size,
        found=[each.sentence for each in results.findings(study)],
        answers=study.section.limits if len(finished) else [],
        made=results.made(study),
        local=study.section.local,
        took=f", {spell(finished['seconds'].sum())} on {', '.join(devices)}" if devices else "",
        states=[f"{run.id} is {run.state}" for run in runs[runs["state"] != "done"].itertuples()],
    )


def _of_ranking(results: Results, each: Ranking, local: bool = False) -> Section:
    return Section(
        name=each.tuning.name,
        title=each.title,
        question=ranking.QUESTION,
        command="" if each.tuning.earlier else each.tuning.command,  # which would begin today's search
        ran=each.progress,
        missing=each.planned - each.ended,
        planned=each.planned,
        found=[],
        answers=[headline(each)] if each.tested else [],
        made=results.ranked(each, local),
        local=local,
    )


# written -----------------------------------------------------------------------------------------


def write(results: Results, html: bool = True) -> list[Path]:
    """Write every table and figure, results/README.md, the findings' page and, unless html is False, report.html.

    The findings' page is docs/findings.md for the repository's own results, with README.md's headline; findings.md next
    to any others. Returns the pages that changed.
    """
    found, sentences = sections(results), headlines(results)
    shared = [each for each in found if not each.local]
    general = {each.name: each for each in results.general() if not isinstance(each, str)}
    own, readme = results.folder == ROOT / "results", ROOT / "README.md"
    pages = {results.folder / "README.md": _fill("report.md", results, shared, general=general, text=markdown)}
    pages[ROOT / "docs" / "findings.md" if own else results.folder / "findings.md"] = _fill(
        "findings.md", results, shared, headlines=sentences, table=findings_table(results)
    )
    if own:
        pages[readme] = between_markers(readme.read_text(), textwrap.fill(" ".join(sentences), 120))
    if html:
        pages[results.folder / "report.html"] = page(results, found, general)
    changed = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    for path in changed:
        write_whole(path, pages[path].encode())
    return changed


def page(results: Results, found: list[Section], general: Mapping[str, Made]) -> str:
    """Return the HTML page, with the rankings and the runs of this machine's store."""
    here = [_of_ranking(results, one, True) for one in ranking.rankings_of_store(results.df, results.store)]
    runs = sorted(results.df["record"], key=lambda run: labels.label(run.config))
    return _fill(
        "report.html",
        results,
        [*found, *here],
        general=general,
        image=image,
        labels=labels,
        spell=spell,
        config=lambda run: yaml.safe_dump({key: run.config[key] for key in identity.TRAINED}),
        version=__version__,
        commit=provenance.git("rev-parse", "HEAD"),
        runs=[run for run in runs if run.state == "done"],
        unfinished=[run for run in runs if run.state != "done"],
    )


def _fill(template: str, results: Results, found: list[Section], **more: Any) -> str:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return made.get_template(template).render(
        paper=results.paper.title,
        filled=filled(results),
        cells=len(results.paper.cells),
        studies=[each for each in found if each.ran],
        others=[each for each in found if not each.ran],
        **more,
    )


def filled(results: Results) -> int:
    """Return how many of the paper's table cells have runs of ours."""
    return sum(bool(len(cell.done(results.df))) for cell in results.paper.cells)


def summary(results: Results) -> str:
    """Return what was found, one sentence a line, and how much of the paper is there."""
    found = [each.sentence for study in results.with_runs for each in results.findings(study)]
    found += [headline(each) for each in results.rankings if each.tested]
    cells = f"{filled(results)} of the paper's {len(results.paper.cells)} cells have runs"
    last = f"{len(done(results.df))} finished runs; {cells}; the command for missing runs is below each table."
    last += f" Tables are in {results.folder / 'tables'}, figures in {results.folder / 'figures'}"
    return "\n".join([*found, last])


def markdown(made: Made, title: bool = True) -> str:
    """Return a table, with what trains its rows folded below it, a figure, or the line in its place, in Markdown."""
    if isinstance(made, SavedFigure):
        return f"![{made.name}](figures/{made.name}.png)\n"
    if isinstance(made, str):
        return f"{made}\n"
    runs = folded(TRAINED, made.trained)
    text = made._repr_markdown_() if title else made.body()
    return text + (f"\n{runs}\n" if runs else "") if made.rows else ""


def image(figure: SavedFigure) -> tuple[int, int, str]:
    """Return a figure's width and height in pixels and its PNG as a page embeds it."""
    png = figure.png.read_bytes()
    width, height = struct.unpack(">II", png[16:24])  # of the PNG's header
    return width, height, base64.b64encode(png).decode()


# the findings' page ------------------------------------------------------------------------------


def headlines(results: Results) -> list[str]:
    """Return the sentences that README shows: those of the findings whose entry has a `headline`."""
    return [each.headline for study in _kept(results) for each in results.findings(study) if each.headline]


def findings_table(results: Results) -> Table:
    """Return one row per finding of the studies with runs that git keeps, with the commands and ids of its runs."""
    rows = [
        {"study": study.name, "found": f"{each.what} ({each.count})", "p": each.p}
        | {"result": each.result if math.isnan(each.low) else f"{each.result} ({each.interval})"}
        | {"reading": each.reading or (each.detail if each.detail != each.result else "")}
        | {"runs": folded(str(len(each.runs)), trained_by(results.df[results.df["id"].isin(each.runs)]))}
        for study in _kept(results)
        for each in results.findings(study)
    ]
    return Table("findings", "Findings", FOUND, rows, [], left=4)


def _kept(results: Results) -> list[Study]:
    return [study for study in results.with_runs if not study.section.local]


def between_markers(text: str, body: str) -> str:
    start, end = map(re.escape, MARKERS)
    return re.sub(f"({start}\n).*?({end})", lambda found: f"{found[1]}{body}\n{found[2]}", text, flags=re.S)
