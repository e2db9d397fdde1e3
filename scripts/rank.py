"""Ranks the methods of a tuning comparison: a table, two figures, and which methods differ from the baseline.

python scripts/rank.py experiment=small_compare
python scripts/rank.py compare=nl,wd dataset=digits ...    the arguments of train.py
python scripts/rank.py results/runs/comparisons/NAME.json  the file that train.py wrote
"""

import argparse
import sys
from pathlib import Path

import checkout  # noqa: F401  before the slow imports

from normloss.analysis import ranking, ranking_figures
from normloss.analysis.show import save
from normloss.cli import entry, start
from normloss.errors import UserError
from normloss.runs.records import existing_folder


def main(arguments: list[str]) -> int:
    parser = start.Parser(__doc__)
    parser.add_argument("words", nargs="+", metavar="key=value | FILE", help="of the tuning comparison")
    parser.add_argument("--store", type=Path, help="folder of runs (default: the command's, or that of FILE)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="archived runs (%(default)s)")
    parser.add_argument("--out", type=Path, help="where to write (default: that of --results)")
    parser.add_argument("--baseline", help="method to test the others against (default: wd, else none)")
    options = parser.parse_intermixed_args(arguments)
    return entry.script(lambda: print(rank(options)))


def rank(options: argparse.Namespace) -> str:
    tuning = ranking.find(options.words, options.store, existing_folder(options.results))
    found = ranking.rank(tuning, options.baseline)
    if not found.methods:
        raise UserError(f"no method of {tuning.name} is tried yet; to resume: {tuning.command}")
    out = options.out or options.results
    table = ranking.table(found, options.results / "bench")
    with entry.written("--out", out):
        save(table, tuning.name, out)
        for name, figure in ranking_figures.draw(found).items():
            save(figure, name, out)
    files = f"{out}/tables/{tuning.name}.md, .tex and .csv, {out}/figures/{tuning.name}_test_error.png and"
    more = f"\nTo resume: {tuning.command}" if found.ended < found.planned else ""
    return f"{table.markdown()}\nWritten: {files} {tuning.name}_sensitivity.png{more}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
