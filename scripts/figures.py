"""Writes every table and figure of the finished runs, and the pages that show them. Trains nothing.

python scripts/figures.py [--store results/runs] [--results results]
"""

import sys
from pathlib import Path

import checkout  # noqa: F401  before the slow imports

from normloss.analysis import report
from normloss.analysis.results import Results
from normloss.cli import entry, start


def main(arguments: list[str], description: str | None = __doc__, html: bool = False) -> int:
    parser = start.Parser(description)
    parser.add_argument("--store", type=Path, help="runs of this machine (default: the repository's)")
    parser.add_argument("--results", type=Path, help="archived runs, and where to write (default: the repository's)")
    options = parser.parse_args(arguments)
    return entry.script(lambda: draw(Results(options.store, options.results), html))


def draw(results: Results, html: bool) -> None:
    with entry.written("results", results.folder):
        changed = report.write(results, html)
    for path in changed:
        print(f"written: {path} ({path.stat().st_size / 2**20:.1f} MB)")
    print(report.summary(results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
