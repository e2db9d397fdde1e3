"""The runs that any command line stands for: `expand(words) -> [Config]`; of a queue, the runs of its entries."""

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import yaml

from normloss.config import Config
from normloss.errors import UserError
from normloss.sweeps import tuning
from normloss.sweeps.command_line import Entry, Planned, compositions, is_for_hydra, is_sweep


def expand(words: Sequence[str]) -> list[Config]:
    """Return the configs of the runs that `python train.py WORDS` trains; of a tuning comparison those known so far.

    Raises UserError in one line.
    """
    return [run.cfg for run in plan(words)]


def plan(words: Sequence[str]) -> list[Planned]:
    """Return the runs of any command line: one run, a sweep, a queue, or a tuning comparison as far as known."""
    parts = queue_entries(words)
    return [run for own in parts for run in (tuning.Search(own).runs() if tuning.asked(own) else compositions(own))]


def entries_of(words: Sequence[str]) -> list[Entry]:
    """Return the entries of a command line: a queue's in order, one per method of a tuning comparison, else one."""
    entries: list[Entry] = []
    for own in queue_entries(words):
        entries += tuning.Search(own).entries() if tuning.asked(own) else [partial(list, compositions(own))]
    return entries


def is_many(words: Sequence[str]) -> bool:
    """Return whether a command line is for the launchers: a sweep, a queue, a tuning comparison, anything on SLURM."""
    starts = ("queue=", "hydra/launcher=")
    many = any(word.startswith(starts) and word != "hydra/launcher=local" for word in words)
    return many or tuning.asked(words) or is_sweep(words)


# queues ------------------------------------------------------------------------------------------


def queue_entries(words: Sequence[str]) -> list[Sequence[str]]:
    """Return a command line for each entry of the file that queue=FILE names, in order; `words` without a queue."""
    files = [word.removeprefix("queue=") for word in words if word.startswith("queue=")]
    rest = [word for word in words if not word.startswith("queue=")]
    entries = read_queue(Path(files[0])) if files else []
    return [[*([] if "hydra.mode=RUN" in one else ["-m"]), *one, *rest] for one in entries] if files else [words]


def read_queue(file: Path) -> list[list[str]]:
    """Read a YAML list of entries such as "experiment=table1 model=resnet110"; raises UserError for anything else."""
    try:
        given = yaml.safe_load(file.read_text())
        listed = given if isinstance(given, list) else []
        entries = [shlex.split(one) if isinstance(one, str) else [] for one in listed]
    except (OSError, ValueError, yaml.YAMLError) as error:  # no text, quotes left open
        raise UserError(f"queue: must be a YAML list of texts, got {file} ({' '.join(str(error).split())})") from None
    if not entries or not all(entries) or any(map(is_for_hydra, entries)):
        raise UserError(f'queue: must be a list of texts such as "experiment=table1 seed=0,1", which train, got {file}')
    return entries
