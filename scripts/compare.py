"""Plots methods: a table and a figure of all runs that match.

python scripts/compare.py dataset=digits model=resnet8 reg=wd,nl
python scripts/compare.py dataset=digits reg=wd,nl --x train.lr
python scripts/compare.py dataset=cifar100 model=wrn28_10 reg.lam=5e-4 train.batch_size=64 --name fig3
python scripts/compare.py 1a2b3c4d                          the curves of one run, by its id
python scripts/compare.py experiment=small_fig2             the tables and figures of the experiment's file
python scripts/compare.py experiment=small_fig2 --x reg.lam --y norm_mean

experiment=NAME selects the runs of this experiment, whichever command trained them. Any other condition is a config key
and its values, written as for train.py; a run matches if it has one of the values. --x is a config key, --y a logged
quantity. Truncated runs (train.max_steps, train.eval_batches) are excluded unless a condition names one of these keys.
"""

import re
import sys
from pathlib import Path

import checkout  # noqa: F401  before the slow imports

from normloss.analysis.plot import STORE, plot
from normloss.cli import entry, start
from normloss.runs.records import existing_folder


def main(arguments: list[str]) -> int:
    parser = start.Parser(__doc__)
    parser.add_argument("conditions", nargs="*", metavar="key=value | ID")
    parser.add_argument("--x", metavar="KEY", help="draw over this config key, such as reg.lam")
    parser.add_argument("--y", metavar="NAME", help="logged quantity to draw over --x (default: test_error)")
    parser.add_argument("--store", type=Path, default=STORE, help="folder of runs (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="archived runs (%(default)s)")
    parser.add_argument("--out", type=Path, default="results/compare", help="where to write (default: %(default)s)")
    parser.add_argument("--name", help="name of the files (default: the values of the conditions)")
    # store=DIR, as train.py has it, is --store=DIR
    words = [f"--{word}" if re.match("(store|results|out|name)=", word) else word for word in arguments]
    asked = parser.parse_intermixed_args(words)

    def run() -> None:
        with entry.written("out", asked.out):
            existing_folder(asked.results)
            print(plot(asked))

    return entry.script(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
