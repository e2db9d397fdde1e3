"""Learning rates per epoch that give runs of one method the effective learning rate of another, for train.lr_values.

python scripts/match_lr.py --target ID ... --source ID ... [--store results/runs]

lr / |w|^2 of the hidden convolutions, from the norms logged; printed as Hydra reads a list. Runs are looked for in the
store, then in the archive.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout's package, wherever it is started

if __name__ == "__main__":  # before the slow imports
    from normloss.cli import start

    start.prepare()

from normloss.analysis.layers import matched_lr
from normloss.cli import entry
from normloss.errors import UserError
from normloss.runs.records import load_archive, load_runs


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", nargs="+", required=True, metavar="ID", help="runs whose effective lr is wanted")
    parser.add_argument("--source", nargs="+", required=True, metavar="ID", help="runs of the method to be matched")
    parser.add_argument("--store", type=Path, default=Path("results/runs"), help="may hold them (%(default)s)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="the archive's folder (%(default)s)")
    options = parser.parse_args(arguments)
    return entry.script(lambda: print(match(options.store, options.results, options.target, options.source)))


def match(store: Path, results: Path, target: list[str], source: list[str]) -> str:
    runs = {run.id: run for run in [*load_archive(results), *load_runs(store)]}
    for id in (*target, *source):
        if id not in runs:
            raise UserError(f"match_lr: must be given ids of runs in {store} or {results}, got {id}")
    values = matched_lr([runs[id] for id in target], [runs[id] for id in source])
    return f"[{','.join(f'{value:g}' for value in values)}]"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
