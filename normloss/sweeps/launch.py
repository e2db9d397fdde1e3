"""Starts many runs: here, or as jobs of SLURM."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normloss.config.plain import as_dict
from normloss.errors import Diverged, UserError
from normloss.runs.files import not_writable
from normloss.sweeps import slurm
from normloss.sweeps.composing import hydra_node, plan, queue_entries
from normloss.sweeps.members import Entry, train_here


@dataclass(frozen=True)
class Local:
    """The keys of hydra/launcher=local."""

    jobs: int | None = None  # processes at once; None: one per GPU, one without


def settings(words: Sequence[str]) -> Local | slurm.Settings:
    """Return the launcher of a command line; raises UserError for what none can have."""
    node = hydra_node(words)
    chosen = node.runtime.choices
    if chosen["hydra/sweeper"] != "basic":
        raise UserError(
            f"hydra/sweeper: must be basic, got {chosen['hydra/sweeper']!r}; another sweeper starts"
            " python train.py key=value itself (docs/experiments.md)"
        )
    keys: dict[str, Any] = as_dict(node.launcher, resolve=True)
    match chosen["hydra/launcher"]:
        case "local":
            if keys["jobs"] is not None:
                slurm.check_count("jobs", keys["jobs"])
            return Local(**keys)
        case "slurm":
            return slurm.checked(keys)
        case other:
            raise UserError(f"hydra/launcher: must be local or slurm, got {other!r}")


def launch(entries: list[Entry], how: Local | slurm.Settings) -> int:
    """Train the entries' missing runs, or submit them; return the exit status. Done means that DONE is there."""
    runs = [run for entry in entries for run in entry()]
    if not runs:
        print("nothing to train: every trial diverged", flush=True)
        return Diverged.status
    store = Path(runs[0].cfg.store)
    try:
        store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable("store", store, error) from None
    if isinstance(how, Local):
        return train_here(entries, how.jobs)
    try:
        return slurm.submit(entries, how)
    except PermissionError as error:
        raise not_writable("store", store / slurm.FOLDER, error) from None


def entries_of(words: Sequence[str]) -> list[Entry]:
    """Return the entries of a command line: a queue's in order, one per method of a tuning comparison, else one."""
    from normloss.sweeps import tuning

    if any(word.startswith("queue=") for word in words):
        return [entry for own in queue_entries(words) for entry in entries_of(own)]
    if tuning.asked(words):
        return tuning.Search(words).entries()
    runs = plan(words)
    return [lambda: runs]
