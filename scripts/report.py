"""Writes results/report.html, and what scripts/figures.py writes: what was asked, run, found and missing.

python scripts/report.py [--store results/runs] [--results results]
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
    parser.add_argument("--results", type=Path, help="archived runs; gets report.html (the repository's)")
    options = parser.parse_args(arguments)
    return entry.script(lambda: write(Results(options.store, options.results)))


def write(results: Results) -> None:
    with entry.written("results", results.folder):
        changed = report.write(results)
    for path in changed:
        print(f"written: {path} ({path.stat().st_size / 2**20:.1f} MB)")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
