"""Draws every table and figure of whatever runs there are, and writes the pages that hold them. Never trains.

python scripts/figures.py [--store results/runs] [--results results]
"""

import argparse
import sys
from pathlib import Path

import checkout  # noqa: F401  before the slow imports

from normloss.analysis import report
from normloss.analysis.results import Results
from normloss.cli import entry


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="runs of this machine (results/runs of the repository)")
    parser.add_argument("--results", type=Path, help="archived runs; gets tables/, figures/ (the repository's)")
    options = parser.parse_args(arguments)
    return entry.script(lambda: draw(Results(options.store, options.results)))


def draw(results: Results) -> None:
    with entry.written("results", results.folder):
        report.write(results, html=False)
    print(report.summary(results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
