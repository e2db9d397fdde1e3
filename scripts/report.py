"""Writes results/report.html: every table and figure, and the runs behind them, on one self-contained page.

python scripts/report.py [--store results/runs] [--results results]
"""

if __name__ == "__main__":  # before the slow imports
    from normloss.cli import start

    start.prepare()

import argparse
import sys
from pathlib import Path

from normloss.analysis import report
from normloss.analysis.book import ROOT, Book
from normloss.cli import entry


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=ROOT / "results" / "runs", help="runs of this machine")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="archived runs; gets report.html")
    options = parser.parse_args(arguments)
    return entry.script(lambda: write(Book(options.store, options.results)))


def write(book: Book) -> None:
    path = book.results / "report.html"
    report.write(book, path)
    print(f"written: {path} ({path.stat().st_size / 2**20:.1f} MB)")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
