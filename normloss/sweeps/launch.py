"""Starts many runs: here, or as jobs of SLURM."""

from collections.abc import Sequence

from normloss.config import checked
from normloss.config.plain import as_dict
from normloss.config.schema import Count, Section
from normloss.errors import UserError
from normloss.sweeps import slurm
from normloss.sweeps.command_line import Entry, hydra_node
from normloss.sweeps.members import train_here
from normloss.sweeps.tuning import Search


class Local(Section):
    """The keys of hydra/launcher=local."""

    jobs: Count | None  # processes at once; None: one per GPU, one without


LAUNCHERS: dict[str, type[Local] | type[slurm.Settings]] = {"local": Local, "slurm": slurm.Settings}


def settings(words: Sequence[str]) -> Local | slurm.Settings:
    """Return the launcher of a command line; raises UserError for what none can have."""
    node = hydra_node(words)
    sweeper, launcher = (node.runtime.choices[f"hydra/{name}"] for name in ("sweeper", "launcher"))
    if sweeper != "basic":
        raise UserError(f"hydra/sweeper: must be basic, got {sweeper!r}; docs/experiments.md says how to use another")
    if launcher not in LAUNCHERS:
        raise UserError(f"hydra/launcher: must be local or slurm, got {launcher!r}")
    return checked(LAUNCHERS[launcher], as_dict(node.launcher, resolve=True), "hydra.launcher.")


def launch(entries: list[Entry], how: Local | slurm.Settings) -> int:
    """Train the entries' missing runs, or submit them; return the exit status. Done means that DONE is there."""
    return train_here(entries, how.jobs) if isinstance(how, Local) else slurm.submit(entries, how)


def tune(words: Sequence[str], how: Local | slurm.Settings) -> int:
    """Do a comparison's work or resume it; return the exit status."""
    search = Search(words)
    status = launch(search.entries(), how)
    path = search.save()
    print(f"what was tried and chosen: {path}\nto read it: python scripts/rank.py {path}", flush=True)
    return status
