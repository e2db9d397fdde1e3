"""What was asked, what was run, what was found, what is missing: as an HTML page, as Markdown, and README's table.

The HTML page is of this machine: hours, devices, unfinished runs and trials are in it alone. What git keeps,
results/README.md and the table in README.md, is the same wherever the same finished runs are.
"""

import base64
import re
import struct
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from normloss import __version__
from normloss.analysis import comparisons
from normloss.analysis.findings import Finding
from normloss.analysis.ranking import Ranking, apart
from normloss.analysis.render import Column, Table, plain, probability
from normloss.analysis.results import ROOT, MissingFigure, Results, SavedFigure
from normloss.analysis.select import done, without_trials
from normloss.analysis.study import Study
from normloss.config import labels
from normloss.runs import provenance
from normloss.runs.files import write_whole
from normloss.training.durations import spell

WIDE = 1200  # pixels: a figure of several panels takes the whole page's width
COMPARED = "Which regularizer, where each is tuned alike on images held out of training?"
MARKERS = ("<!-- findings -->", "<!-- /findings -->")
FOUND = (
    plain("study"),
    plain("found"),
    plain("result"),
    plain("n"),
    plain("interval", "95 % interval"),
    Column("p", lambda row: probability(row["p"])),
)


# HTML --------------------------------------------------------------------------------------------


def write(results: Results, path: Path) -> None:
    """The page of all results, whole or not at all; makes its tables and figures anew."""
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(
        files("normloss.analysis").joinpath("report.html").read_text()
    )
    finished = without_trials(done(results.df))
    here = results.rankings + comparisons.of_store(results.df, results.store)
    text = page.render(
        paper=results.paper.raw["paper"],
        version=__version__,
        commit=provenance.git("rev-parse", "HEAD"),
        done=len(finished),
        unfinished=int((results.df["state"] != "done").sum()),
        trials=len(done(results.df)) - len(finished),
        filled=filled(results),
        cells=len(results.paper.cells),
        studies=[_section(results, study) for study in results.with_runs] + [_compared(results, each) for each in here],
        others=[_section(results, study) for study in results.studies.values() if study not in results.with_runs],
        claims=results.table("claims"),
        operations=results.table("operations"),
        general=[made for made in map(_embed, map(results.figure, ("cost", "fig1"))) if made],
        runs=[describe(run) for run in _in_order(done(results.df))],
        states=[(run.id, labels.label(run.record.config), run.state) for run in _in_order(_unfinished(results.df))],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())


def filled(results: Results) -> int:
    """How many of the paper's table cells have runs of ours."""
    return sum(bool(len(cell.done(results.df))) for cell in results.paper.cells)


def _section(results: Results, study: Study) -> dict[str, Any]:
    runs = results.own(study)
    finished = done(runs)
    made = results.everything(study.name)
    seconds = finished["seconds"].sum()
    devices = sorted({record.meta.get("device_name", "?") for record in finished["record"]})
    return {
        "name": study.name,
        "title": study.title,
        "question": study.question,
        "command": study.command,
        "ran": f"{_ran(study, finished)}, {spell(seconds)} on {', '.join(devices)}" if len(finished) else "",
        "missing": study.missing(results.df),
        "states": [f"{run.id} is {run.state}" for run in _unfinished(runs).itertuples()],
        "found": [each.sentence for each in results.findings(study)],
        "tables": [each for each in made if isinstance(each, Table)],
        "figures": [_embed(each) for each in made if isinstance(each, SavedFigure)],
        "empty": [each.text for each in made if isinstance(each, MissingFigure)],
    }


def _compared(results: Results, ranking: Ranking) -> dict[str, Any]:
    """A comparison of methods as a section like a study's."""
    table, figures = results.compared(ranking)
    return {
        "name": ranking.comparison.name,
        "title": f"Methods compared, {ranking.comparison.title}",
        "question": COMPARED,
        "command": ranking.comparison.command,
        "ran": _compared_ran(ranking),
        "missing": ranking.planned - ranking.ended,
        "states": [],
        "found": [apart(ranking)] if ranking.tested else [],
        "tables": [table],
        "figures": [_embed(each) for each in figures],
        "empty": [],
    }


def _compared_ran(ranking: Ranking) -> str:
    ranked, asked = len(ranking.methods), len(ranking.tuned)
    return f"{ranked} of {asked} methods tried to the end, {ranking.ended} of {ranking.planned} trainings"


def _embed(figure: SavedFigure | MissingFigure) -> dict[str, Any] | None:
    if isinstance(figure, MissingFigure):
        return None
    png = figure.png.read_bytes()
    width, height = struct.unpack(">II", png[16:24])  # of the PNG's header
    return {
        "name": figure.name,
        "alt": figure.name.replace("_", " "),
        "data": base64.b64encode(png).decode(),
        "width": width,
        "height": height,
        "wide": width > WIDE,
    }


def _unfinished(df: pd.DataFrame) -> pd.DataFrame:
    return df[df["state"] != "done"]


def _in_order(df: pd.DataFrame) -> Iterable[Any]:
    return sorted(df.itertuples(), key=lambda run: labels.label(run.record.config))


def describe(run: Any) -> dict[str, Any]:
    """What the page says of a run."""
    record = run.record
    config, meta, final = record.config, record.meta, record.final
    train = config["train"]
    return {
        "id": record.id,
        "label": labels.label(config),
        "trial": bool(labels.describe_trial(train)),
        "batch": train["batch_size"],
        "length": f"{final['steps']} steps" if train.get("max_steps") else f"{train['epochs']} epochs",
        "error": f"{final['test_error']:.2f}",
        "norm": f"{final['norm_mean']:.3f}",
        "time": spell(final["seconds"]),
        "device": meta.get("device_name", "?"),
        "commit": (meta.get("commit") or "?")[:10] + ("+" if meta.get("dirty") else ""),
        "wandb": meta.get("wandb") or "",
        "config": yaml.safe_dump({key: config[key] for key in ("dataset", "model", "reg", "train", "seed")}),
    }


# Markdown ----------------------------------------------------------------------------------------


def kept(results: Results) -> list[Study]:
    """The studies with runs whose results git keeps."""
    return [study for study in results.with_runs if not study.local]


def findings_table(results: Results) -> Table:
    """One row per finding that tests a claim of the paper, of the studies with runs."""
    rows = [_found(study, each) for study in kept(results) for each in results.findings(study) if each.claim]
    return Table("findings", "Findings", FOUND, rows, [], left=3)


def _found(study: Study, each: Finding) -> dict[str, Any]:
    numbers = {"result": each.result, "n": each.count, "interval": each.interval, "p": each.p}
    return {"study": study.title, "found": each.what} | numbers


def write_markdown(results: Results) -> list[Path]:
    """results/README.md and, in the repository itself, the table of findings in README.md; the files that changed.

    Names the figures in results/figures, which a notebook or the page has drawn.
    """
    target = results.folder / "README.md"
    pages = {target: markdown(results)}
    readme = ROOT / "README.md"
    if results.folder.resolve() == (ROOT / "results").resolve() and MARKERS[0] in readme.read_text():
        pages[readme] = between_markers(readme.read_text(), findings_table(results).body())
    changed = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, pages[path].encode())
    return changed


def between_markers(text: str, body: str) -> str:
    start, end = map(re.escape, MARKERS)
    return re.sub(f"({start}\n).*?({end})", lambda found: f"{found[1]}\n{body}\n{found[2]}", text, flags=re.S)


def markdown(results: Results) -> str:
    """The report without what is this machine's alone."""
    studies = kept(results)
    others = [study for study in results.studies.values() if study not in studies and not study.local]
    lines = ["# Results", "", f"Of {results.paper.raw['paper']}. Made by `make report`; nothing here is typed.", ""]
    titles = {f"Methods compared, {each.comparison.title}": each for each in results.rankings}
    lines += ["## What was asked", "", *(f"- {study.title}: {study.question}" for study in studies)]
    lines += [*(f"- {title}: {COMPARED}" for title in titles), ""]
    ran = {study.title: _ran(study, done(results.own(study))) for study in studies}
    ran |= {title: _compared_ran(each) for title, each in titles.items()}
    lines += ["## What was run", "", *(f"- {title}: {text}" for title, text in ran.items()), ""]
    lines += ["## What was found", ""]
    for study in studies:
        found = results.findings(study)
        lines += [f"- {study.title}", *(f"  - {each.sentence}" for each in found)] if found else []
    lines += [f"- {title}\n  - {apart(each)}" for title, each in titles.items() if each.tested]
    lines += ["", "## What is missing", ""]
    for study in studies:
        missing = study.missing(results.df)
        lines += [f"- {missing} of {study.size} runs of {study.title}: `{study.command}`"] if missing else []
    for title, each in titles.items():
        missing = each.planned - each.ended
        lines += [f"- {missing} of {each.planned} runs of {title}: `{each.comparison.command}`"] if missing else []
    lines += [f"- {filled(results)} of the paper's {len(results.paper.cells)} table cells have runs; see the end", ""]
    for study in studies:
        lines += [f"## {study.title}", "", study.question, "", *_shown(results, study)]
    for title, each in titles.items():
        table, figures = results.compared(each)
        lines += [f"## {title}", "", COMPARED, "", f"**{table.title}**", "", table.body()]
        lines += [f"![{one.name}](figures/{one.name}.png)\n" for one in figures]
    lines += ["## The paper's claims", "", results.table("claims").body()]
    lines += ["## Section IV-B", "", results.table("operations").body()]
    lines += ["![cost](figures/cost.png)", ""] if (results.folder / "figures" / "cost.png").exists() else []
    lines += ["<details><summary>What was not run: the paper's own settings</summary>", ""]
    for study in others:
        lines += [
            f"### {study.title}",
            "",
            f"{study.question} To run: `{study.command}`",
            "",
            *_shown(results, study, False),
        ]
    return "\n".join([*lines, "</details>"]) + "\n"


def _ran(study: Study, finished: pd.DataFrame) -> str:
    seeds = finished["seed"].nunique()
    return f"{len(finished)} finished runs, {study.size} planned; {seeds} seed{'s' if seeds != 1 else ''}"


def _shown(results: Results, study: Study, with_figures: bool = True) -> list[str]:
    lines = []
    for shown in study.show:
        if shown.folder == "tables":
            table = results.table(shown.name)
            lines += [f"**{table.title}**", "", table.body()] if table.rows else []
        elif shown.folder == "figures" and with_figures:
            missing = results.lacks(study, shown)
            lines += [missing.text if missing else f"![{shown.name}](figures/{shown.name}.png)", ""]
    return lines
