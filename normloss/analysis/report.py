"""The report: what was asked, run, found and is missing. One list of sections, as an HTML page and as Markdown.

The HTML page is of this machine: hours, devices, unfinished and truncated runs are only there. What git keeps,
results/README.md and the table of findings in README.md, is the same wherever the same finished runs are.
"""

import base64
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from normloss import __version__
from normloss.analysis import ranking
from normloss.analysis.ranking import Ranking, headline
from normloss.analysis.render import Column, Table, plain, probability
from normloss.analysis.results import ROOT, Made, Results
from normloss.analysis.select import done, without_trials
from normloss.analysis.show import SavedFigure
from normloss.analysis.study import Study
from normloss.config import labels
from normloss.runs import provenance
from normloss.runs.files import write_whole
from normloss.training.durations import spell

WIDE = 1200  # pixels: a figure of several panels takes the whole page's width
MARKERS = ("<!-- findings -->", "<!-- /findings -->")
FOUND = (
    plain("study"),
    plain("found"),
    plain("result"),
    plain("n"),
    plain("interval", "95 % interval"),
    Column("p", lambda row: probability(row["p"])),
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
    found: list[str]  # sentences, and the limits of what they say
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

    @property
    def lines(self) -> list[str]:
        """What stands in place of figures without runs."""
        return [str(each) for each in self.made if not isinstance(each, (Table, SavedFigure))]


def sections(results: Results) -> list[Section]:
    """Return the studies with runs, the rankings, and the studies without runs; draws and writes all they show."""
    studies = {study.name: _of_study(results, study) for study in results.studies.values()}
    with_runs = [studies.pop(study.name) for study in results.with_runs]
    return [*with_runs, *(_of_ranking(results, each) for each in results.rankings), *studies.values()]


def _of_study(results: Results, study: Study) -> Section:
    runs = results.own(study)
    finished = done(runs)
    devices = sorted({record.meta.get("device_name", "?") for record in finished["record"]})
    seeds = labels.counted(finished["seed"].nunique(), "seed")
    ran = f"{labels.counted(len(finished), 'finished run')}, {study.size} planned; {seeds}"
    return Section(
        name=study.name,
        title=study.title,
        question=study.section.question,
        command=study.command,
        ran=ran if len(finished) else "",
        missing=study.missing(results.df),
        planned=study.size,
        found=[*(each.sentence for each in results.findings(study)), *(study.section.limits if len(finished) else [])],
        made=results.made(study),
        local=study.section.local,
        took=f", {spell(finished['seconds'].sum())} on {', '.join(devices)}" if devices else "",
        states=[f"{run.id} is {run.state}" for run in runs[runs["state"] != "done"].itertuples()],
    )


def _of_ranking(results: Results, each: Ranking, local: bool = False) -> Section:
    return Section(
        name=each.comparison.name,
        title=each.title,
        question=ranking.QUESTION,
        command=each.comparison.command,
        ran=each.progress,
        missing=each.planned - each.ended,
        planned=each.planned,
        found=[headline(each)] if each.tested else [],
        made=results.ranked(each, local),
        local=local,
    )


# written -----------------------------------------------------------------------------------------


def write(results: Results, html: bool = True) -> list[Path]:
    """Write every table and figure, results/README.md, README.md's findings and, unless html is False, report.html.

    Returns the pages that changed.
    """
    found, general = sections(results), results.general()
    readme = ROOT / "README.md"
    pages = {results.folder / "README.md": markdown(results, found, general)}
    if results.folder == ROOT / "results" and MARKERS[0] in readme.read_text():
        pages[readme] = between_markers(readme.read_text(), findings_table(results).body())
    if html:
        here = [_of_ranking(results, one, True) for one in ranking.rankings_of_store(results.df, results.store)]
        pages[results.folder / "report.html"] = page(results, found, here, general)
    changed = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    for path in changed:
        write_whole(path, pages[path].encode())
    return changed


def markdown(results: Results, found: list[Section], general: list[Made]) -> str:
    """Return the report without what is this machine's only."""
    shared = [each for each in found if not each.local]
    return _fill("report.md", results, [each for each in shared if each.ran], shared, general, titled=titled)


def page(results: Results, found: list[Section], here: list[Section], general: list[Made]) -> str:
    """Return the HTML page; here: rankings of this machine's store."""
    finished, unfinished = done(results.df), results.df[results.df["state"] != "done"]
    return _fill(
        "report.html",
        results,
        [*(each for each in found if each.ran), *here],
        found,
        general,
        image=image,
        version=__version__,
        commit=provenance.git("rev-parse", "HEAD"),
        done=len(without_trials(finished)),
        unfinished=len(unfinished),
        trials=len(finished) - len(without_trials(finished)),
        runs=[describe(run) for run in _in_order(finished)],
        states=[(run.id, labels.label(run.record.config), run.state) for run in _in_order(unfinished)],
    )


def _fill(
    template: str, results: Results, studies: list[Section], found: list[Section], general: list[Made], **more: Any
) -> str:
    text = files("normloss.analysis").joinpath(template).read_text()
    made = jinja2.Environment(
        autoescape=template.endswith("html"), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return made.from_string(text).render(
        paper=results.paper.title,
        filled=filled(results),
        cells=len(results.paper.cells),
        studies=studies,
        others=[each for each in found if not each.ran],
        general={each.name: each for each in general if isinstance(each, (Table, SavedFigure))},
        **more,
    )


def filled(results: Results) -> int:
    """Return how many of the paper's table cells have runs of ours."""
    return sum(bool(len(cell.done(results.df))) for cell in results.paper.cells)


def summary(results: Results) -> str:
    """Return what was found, one sentence a line, and how much of the paper is there."""
    found = [each.sentence for study in results.with_runs for each in results.findings(study)]
    found += [headline(each) for each in results.rankings if each.tested]
    last = (
        f"{len(done(results.df))} finished runs; {filled(results)} of the paper's {len(results.paper.cells)} cells have"
        " runs, and below each table stands what fills the others. Tables are in"
        f" {results.folder / 'tables'}, figures in {results.folder / 'figures'}"
    )
    return "\n".join([*found, last])


def titled(made: Made) -> str:
    """Return a table with its title, a figure, or the line in its place, in Markdown."""
    if isinstance(made, Table):
        return f"**{made.title}**\n\n{made.body()}" if made.rows else ""
    return f"![{made.name}](figures/{made.name}.png)\n" if isinstance(made, SavedFigure) else f"{made}\n"


def image(figure: SavedFigure) -> dict[str, Any]:
    """Return a figure as a page embeds it."""
    png = figure.png.read_bytes()
    width, height = struct.unpack(">II", png[16:24])  # of the PNG's header
    data = base64.b64encode(png).decode()
    return {
        "name": figure.name,
        "path": figure.png.with_suffix(".pdf"),
        "data": data,
        "width": width,
        "height": height,
        "wide": width > WIDE,
    }


def _in_order(df: pd.DataFrame) -> Iterable[Any]:
    return sorted(df.itertuples(), key=lambda run: labels.label(run.record.config))


def describe(run: Any) -> dict[str, Any]:
    """Return what the page says of a run."""
    record = run.record
    config, meta, final = record.config, record.meta, record.final
    train = config["train"]
    return {
        "id": record.id,
        "label": labels.label(config),
        "trial": bool(labels.describe_trial(train)),
        "batch": train["batch_size"],
        "length": labels.counted(final["steps"], "step")
        if train.get("max_steps")
        else labels.counted(train["epochs"], "epoch"),
        "error": f"{final['test_error']:.2f}",
        "norm": f"{final['norm_mean']:.3f}",
        "time": spell(final["seconds"]),
        "device": meta.get("device_name", "?"),
        "commit": (meta.get("commit") or "?")[:10] + ("+" if meta.get("dirty") else ""),
        "wandb": meta.get("wandb") or "",
        "config": yaml.safe_dump({key: config[key] for key in ("dataset", "model", "reg", "train", "seed")}),
    }


# README's table ----------------------------------------------------------------------------------


def findings_table(results: Results) -> Table:
    """Return one row per finding that tests a claim of the paper, of the studies with runs that git keeps."""
    rows = [
        {"study": study.title, "found": each.what, "result": each.result, "n": each.count}
        | {"interval": each.interval, "p": each.p}
        for study in results.with_runs
        for each in results.findings(study)
        if each.claim and not study.section.local
    ]
    return Table("findings", "Findings", FOUND, rows, [], left=3)


def between_markers(text: str, body: str) -> str:
    start, end = map(re.escape, MARKERS)
    return re.sub(f"({start}\n).*?({end})", lambda found: f"{found[1]}\n{body}\n{found[2]}", text, flags=re.S)
