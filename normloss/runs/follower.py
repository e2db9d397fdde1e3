"""A run as torchrun's further processes have it: they train along and write nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from normloss.config import Config
from normloss.runs.store import Run


def follower(cfg: Config) -> Run:
    """What training asks of a Run, it may ask of this."""
    return cast(Run, Follower(cfg))


class Follower:
    """What training asks of runs.store.Run, without its folder, which the first process has."""

    done = checkpoint_due = checkpoint_due_after_epoch = False

    def __init__(self, cfg: Config) -> None:
        self.id, self.path = cfg.id, Path(cfg.store) / cfg.id

    @contextmanager
    def session(self) -> Iterator[None]:
        yield

    def nothing(self, *arguments: Any, **facts: Any) -> None:
        """The first process does it."""

    describe = note = beat = check_data = log_epoch = log_steps = save = finish = unusable = nothing
