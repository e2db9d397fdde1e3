"""Everything on one self-contained HTML page: tables, figures, and the runs with their commit and config."""

import base64
import struct
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import yaml

from normloss import __version__
from normloss.analysis.book import OF_EACH_STUDY, Book, Picture
from normloss.analysis.render import Table
from normloss.analysis.select import spelled
from normloss.analysis.studies import MINI
from normloss.runs import provenance
from normloss.runs.files import write_whole
from normloss.sweeps.durations import spell_hours

WIDE = 2.0  # a figure so many times as wide as high takes the whole page's width


@dataclass(frozen=True)
class Part:
    title: str
    anchor: str
    text: str
    tables: list[Table]
    pictures: list[dict[str, Any]]


def write(book: Book, path: Path) -> None:
    """The page of a book, whole or not at all; makes its tables and figures anew."""
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(
        files("normloss.analysis").joinpath("report.html").read_text()
    )
    done = book.df[book.df["state"] == "done"]
    text = page.render(
        paper=book.paper.raw["paper"],
        version=__version__,
        commit=provenance.git("rev-parse", "HEAD"),
        done=len(done),
        unfinished=len(book.df) - len(done),
        filled=sum(bool(len(row.cell.done(book.df))) for row in _cells(book)),
        cells=len(_cells(book)),
        parts=parts(book),
        runs=[describe(run) for run in done.sort_values("id").itertuples()],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())


def parts(book: Book) -> list[Part]:
    of_study = list(OF_EACH_STUDY)
    paper, beyond = of_study[: of_study.index("fig6") + 1], of_study[of_study.index("fig6") + 1 :]
    mini_text = f"{MINI.title}. They show that every study runs from end to end; nothing here is the paper's result."
    return [
        _part(book, "Tables", "", [*book.paper.tables, "claims"], []),
        _part(book, "Figures", "", [], ["fig1", *paper]),
        _part(book, "Beyond the paper", "", ["nl_anneal"], ["methods", "cost", *beyond]),
        _part(
            book,
            "Scaled down",
            mini_text,
            [name for name in book.tables if name.startswith("mini_")],
            ["mini_methods", *(f"mini_{name}" for name in of_study)],
        ),
    ]


def _part(book: Book, title: str, text: str, tables: list[str], figures: list[str]) -> Part:
    made = [book.table(name) for name in tables]
    return Part(title, title.lower().replace(" ", "-"), text, made, [_embed(book.figure(name)) for name in figures])


def _embed(picture: Picture) -> dict[str, Any]:
    png = picture.png.read_bytes()
    width, height = struct.unpack(">II", png[16:24])  # of the PNG's header
    data = base64.b64encode(png).decode()
    return {
        "name": picture.name,
        "alt": picture.name.replace("_", " "),
        "data": data,
        "width": width,
        "height": height,
        "wide": width > WIDE * height,
    }


def _cells(book: Book) -> list:
    return [row for table in book.paper.tables.values() for row in table.rows if row.cell]


def describe(run: Any) -> dict[str, Any]:
    """What the page says of a run."""
    record = run.record
    config, meta, final = record.config, record.meta, record.final
    lam = f" λ={spelled(config['reg']['lam'])}" if config["reg"]["lam"] else ""
    names = " ".join(config[key]["name"] for key in ("dataset", "model", "reg"))
    return {
        "id": record.id,
        "label": f"{names}{lam} seed={config['seed']}",
        "batch": config["train"]["batch_size"],
        "epochs": config["train"]["epochs"],
        "error": f"{final['test_error']:.2f}",
        "norm": f"{final['norm_mean']:.3f}",
        "time": spell_hours(final["seconds"] / 3600),
        "device": meta.get("device_name", "?"),
        "commit": (meta.get("commit") or "?")[:10] + ("+" if meta.get("dirty") else ""),
        "wandb": meta.get("wandb") or "",
        "config": yaml.safe_dump({key: config[key] for key in ("dataset", "model", "reg", "train", "seed")}),
    }
