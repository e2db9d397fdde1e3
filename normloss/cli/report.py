"""Writes results/report.html, results/README.md and the findings in README.md: what was asked, run, found and missing.

python scripts/report.py [--store results/runs] [--results results]
"""

import argparse
from pathlib import Path

from normloss.analysis import report
from normloss.analysis.book import Book
from normloss.cli import entry


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="runs of this machine (results/runs of the repository)")
    parser.add_argument("--results", type=Path, help="archived runs; gets report.html (the repository's)")
    options = parser.parse_args(arguments)
    return entry.script(lambda: write(Book(options.store, options.results)))


def write(book: Book) -> None:
    path = book.results / "report.html"
    with entry.written("results", book.results):
        report.write(book, path)
        changes = report.write_markdown(book)
    for changed in changes:
        print(f"written: {changed}")
    print(f"written: {path} ({path.stat().st_size / 2**20:.1f} MB)")
