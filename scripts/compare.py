"""Plots methods: a table and a figure of whatever runs match.

python scripts/compare.py dataset=digits model=resnet8 reg=wd,nl
python scripts/compare.py dataset=digits reg=wd,nl --x train.lr
python scripts/compare.py dataset=cifar100 model=wrn28_10 reg.lam=5e-4 train.batch_size=64 --name fig3
python scripts/compare.py 1a2b3c4d                          the curves of one run, by its id
python scripts/compare.py experiment=small_fig2
python scripts/compare.py experiment=small_fig2 --x reg.lam --y norm_mean

experiment=NAME stands for the runs that train.py experiment=NAME trains, whatever started them; without --x it makes
what the experiment's file says. Any other condition is a key of a run's config and its values, written as for train.py:
any of these. --x is a key of the config, --y what a run logs. Truncated runs (train.max_steps, train.eval_batches) are
left out unless a condition names one of these keys.
"""

import argparse
import re
import sys
from pathlib import Path

import checkout  # noqa: F401  before the slow imports

from normloss.analysis.plot import STORE, plot
from normloss.cli import entry


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conditions", nargs="*", metavar="key=value | ID")
    parser.add_argument("--x", metavar="KEY", help="a point for each value of this config key, such as reg.lam")
    parser.add_argument("--y", metavar="NAME", help="what a run logs (test_error)")
    parser.add_argument("--store", type=Path, default=STORE, help="the runs (default: %(default)s)")
    parser.add_argument("--results", type=Path, default="results", help="archived runs (%(default)s)")
    parser.add_argument("--out", type=Path, default="results/compare", help="gets tables/, figures/ (%(default)s)")
    parser.add_argument("--name", help="of the files (default: the values of the conditions)")
    # store=DIR, as train.py has it, is --store=DIR
    words = [f"--{word}" if re.match("(store|results|out|name)=", word) else word for word in arguments]
    asked = parser.parse_intermixed_args(words)

    def run() -> None:
        with entry.written("out", asked.out):
            print(plot(asked))

    return entry.script(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
