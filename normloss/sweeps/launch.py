"""The runs of a command line, trained here or, with hydra/launcher=slurm, submitted."""

from collections.abc import Sequence
from pathlib import Path

from normloss.sweeps import slurm
from normloss.sweeps.composing import compositions, launcher_jobs, read_queue
from normloss.sweeps.members import Line, run_members


def launch(lines: list[Line], words: Sequence[str]) -> int:
    """Train or submit the lines' runs; the exit status."""
    if slurm.asked(words):
        return slurm.submit(lines, slurm.settings(words))
    return run_members(lines, launcher_jobs(words))


def run_queue(words: list[str]) -> int:
    """`python train.py queue=FILE key=value ...`: the runs of every line of FILE, in its order, as one sweep."""
    file = Path(next(word.partition("=")[2] for word in words if word.startswith("queue=")))
    rest = [word for word in words if not word.startswith("queue=")]
    return launch([line for own in read_queue(file) for line in lines_of([*own, *rest])], words)


def lines_of(words: list[str]) -> list[Line]:
    """Those of `python train.py WORDS`: of a comparison, one per method."""
    from normloss.sweeps import tuning

    return tuning.Search(words).lines() if tuning.asked(words) else [Line(compositions(words))]
