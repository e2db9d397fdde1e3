"""Learning rates an epoch that give runs of one method the effective learning rate of another, for train.lr_values.

python scripts/match_lr.py --target ID ... --source ID ... [--store results/runs]

lr / |w|^2 of the hidden convolutions, from the norms logged; printed as Hydra reads a list.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout's package, wherever it is started

if __name__ == "__main__":  # before the slow imports
    from normloss.cli import start

    start.prepare()

from normloss.analysis.effective_lr import matched_lr
from normloss.cli import entry
from normloss.runs.records import load_run


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", nargs="+", required=True, metavar="ID", help="runs whose effective lr is wanted")
    parser.add_argument("--source", nargs="+", required=True, metavar="ID", help="runs of the method to be matched")
    parser.add_argument("--store", type=Path, default=Path("results/runs"), help="holds them (%(default)s)")
    options = parser.parse_args(arguments)
    return entry.script(lambda: print(match(options.store, options.target, options.source)))


def match(store: Path, target: list[str], source: list[str]) -> str:
    values = matched_lr(*([load_run(store / id) for id in ids] for ids in (target, source)))
    return f"[{','.join(f'{value:g}' for value in values)}]"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
