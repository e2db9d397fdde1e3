"""A run that writes nothing: what torchrun's processes other than the first train with."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from normloss.config import Config
from normloss.runs.store import Run


def null_run(cfg: Config) -> Run:
    """Return a stand-in for the Run of a config whose folder the first process has."""
    return cast(Run, NullRun(cfg))


class NullRun:
    """Has the methods of runs.store.Run that training calls; none of them does anything."""

    done = checkpoint_due = checkpoint_due_after_epoch = False
    session = nullcontext

    def __init__(self, cfg: Config) -> None:
        self.id, self.path = cfg.id, Path(cfg.store) / cfg.id

    def nothing(self, *arguments: Any, **facts: Any) -> None:
        """Leave it to the first process."""

    describe = note = beat = check_data = log_epoch = log_steps = save = finish = nothing
