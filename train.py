"""Trains what a command line asks for: python train.py --help

words -> configs (normloss.sweeps.composing.py) -> one run (normloss/training/run.py, the run on one page), or many: a
sweep, a queue or a tuning comparison, in processes here or on SLURM (normloss/sweeps/launch.py)
"""

if __name__ == "__main__":  # before the slow imports
    from normloss.cli import start

    start.prepare()

import sys

from normloss.errors import exit_status
from normloss.signals import StopRequest
from normloss.sweeps.command_line import ask_hydra, is_for_hydra
from normloss.sweeps.composing import entries_of, expand, is_many
from normloss.sweeps.launch import launch, settings, tune
from normloss.sweeps.tuning import asked
from normloss.training.distributed import refuse_many_runs
from normloss.training.run import deadline, train


def main(words: list[str]) -> int:
    """Train what the words ask for; return the exit status."""
    if is_for_hydra(words):
        return ask_hydra(words)
    if not is_many(words):
        (cfg,) = expand(words)
        train(cfg, StopRequest(deadline(cfg)).listen())
        return 0
    refuse_many_runs()
    how = settings(words)
    return tune(words, how) if asked(words) else launch(entries_of(words), how)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
