"""Executes the notebooks headless: every table and figure from whatever runs there are. Never trains.

python scripts/figures.py [--store results/runs] [--results results] [notebooks/tables.ipynb ...]
"""

if __name__ == "__main__":  # before the slow imports
    from normloss.cli import start

    start.prepare()

import argparse
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

from normloss.analysis.book import ROOT, Book
from normloss.cli import entry
from normloss.errors import UserError

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, default=NOTEBOOKS)
    parser.add_argument("--store", type=Path, default=ROOT / "results" / "runs", help="runs of this machine")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="archived runs; tables/, figures/")
    options = parser.parse_args(arguments)
    return entry.script(lambda: draw(options.notebooks, Book(options.store, options.results)))


def draw(notebooks: list[Path], book: Book) -> None:
    os.environ |= {"NORMLOSS_STORE": str(book.store.resolve()), "NORMLOSS_RESULTS": str(book.results.resolve())}
    for notebook in notebooks:
        execute(notebook)
    print(summary(book))


def execute(notebook: Path) -> None:
    """Run every cell; the file stays as it is."""
    if not notebook.exists():
        raise UserError(f"{notebook}: no such notebook")
    content = nbformat.read(notebook, as_version=4)
    here = {"metadata": {"path": str(ROOT)}}
    sockets = {"transport": "ipc"} if os.name == "posix" else {}  # no port that others on this machine could open
    try:
        NotebookClient(content, timeout=600, resources=here, config=Config(KernelManager=sockets)).execute()
    except CellExecutionError as error:
        raise UserError(f"{notebook.name}: a cell failed ({error.ename}: {error.evalue})") from None


def summary(book: Book) -> str:
    """How far our means are from the paper's, and how much is missing."""
    lines, filled, cells = [], 0, 0
    for table in book.paper.tables.values():
        for row in (row for row in table.rows if row.cell):
            errors, theirs = row.cell.done(book.df)["test_error"], row.values.get("mean", row.values.get("top1"))
            cells += 1
            if len(errors):
                filled += 1
                lines.append(
                    f"{table.name} {row.model} {row.method}: ours {errors.mean():.2f} (n = {len(errors)}), paper"
                    f" {theirs:g}, {errors.mean() - theirs:+.2f}"
                )
    done = int((book.df["state"] == "done").sum())
    lines.append(
        f"{done} finished runs; {filled} of the paper's {cells} cells have runs, and below each table stands what fills"
        f" the others. Tables are in {book.results / 'tables'}, figures in {book.results / 'figures'}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
