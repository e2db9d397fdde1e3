"""A window of time on some machine: which missing work comes first in it, what to expect of it, when to stop."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from normloss.config import Config
from normloss.runs.files import read_json
from normloss.sweeps.durations import Pace, kind, knows, run_seconds, spell_hours, total_steps

SAVE_SECONDS = 10.0  # before the end of the budget: a checkpoint is written in these
START_SECONDS = 20.0  # a run is not started for less: it would import, read its data and leave


@dataclass(frozen=True)
class Window:
    """When the budget began, and when runs have to leave (seconds since the epoch)."""

    minutes: float
    began: float

    @property
    def deadline(self) -> float:
        return self.began + 60 * self.minutes - SAVE_SECONDS

    @property
    def open(self) -> bool:
        """Whether there is time to start another run."""
        return time.time() < self.deadline - START_SECONDS


def deadline(minutes: float | None) -> float | None:
    """Of a run of its own that starts now."""
    return None if minutes is None else Window(minutes, time.time()).deadline


def share_done(cfg: Config) -> float:
    """Of a run's steps, those that its checkpoint holds; by epochs where the number of images is not known."""
    path = Path(cfg.store) / cfg.id
    if (path / "DONE").exists():
        return 1.0
    status = read_json(path / "status.json") or {}
    if knows(cfg):
        return min(1.0, status.get("saved", 0) / total_steps(cfg))
    return min(1.0, status.get("epoch", 0) / cfg.train.epochs)


def arrange(configs: list[Config]) -> list[Config]:
    """What is nearly finished first; then one seed of every cell, both methods of a pair, before the next seed."""
    done = {cfg.id: share_done(cfg) for cfg in configs}
    return sorted(configs, key=lambda cfg: (-done[cfg.id], cfg.seed))  # stable: else in the experiment's order


def seconds_left(configs: list[Config], paces: dict[tuple, Pace]) -> float | None:
    """Until these seeds of one cell are done, training at once on this machine; None where it cannot be told."""
    pace = paces.get(kind(configs[0]))
    if pace is None or not knows(configs[0]):
        return None
    steps = max(run_seconds(cfg, pace.round_of(len(configs))) * (1 - share_done(cfg)) for cfg in configs)
    return pace.start + steps if steps else 0.0


def next_crew(waiting: list[Config], paces: dict[tuple, Pace], seconds: float) -> list[Config]:
    """The runs to start first and at once: the first one, and of its cell's other seeds as many as are faster so.

    Seeds that end are worth more than seeds that do not, and of both methods of a pair more than of one: together they
    must end in the cell's share of the `seconds` left, where the cells of one network and data set share alike.
    """
    cell, pace = waiting[0].cell, paces.get(kind(waiting[0]))
    seeds = [cfg for cfg in waiting if cfg.cell == cell]
    rivals = {cfg.cell for cfg in waiting if _bench(cfg) == _bench(waiting[0])}
    most = min(len(seeds), pace.together if pace else 1)
    ends = (size for size in range(most, 1, -1) if (seconds_left(seeds[:size], paces) or 0) <= seconds / len(rivals))
    return seeds[: next(ends, 1)]


def _bench(cfg: Config) -> tuple:
    return cfg.dataset.name, cfg.model.name


def crews(configs: list[Config], paces: dict[tuple, Pace], seconds: float) -> Iterator[list[Config]]:
    """All runs as they would be started with so much time left for each."""
    waiting = list(configs)
    while waiting:
        crew = next_crew(waiting, paces, seconds)
        waiting = [cfg for cfg in waiting if cfg not in crew]
        yield crew


def outlook(configs: list[Config], paces: dict[tuple, Pace], jobs: int, seconds: float = 0.0) -> str:
    """What is left, and what `seconds` are expected to bring, `jobs` processes at a time, each as fast as one alone."""
    lanes = [0.0] * jobs
    finished, begun, total, unknown = 0, 0, 0.0, 0
    for crew in crews(configs, paces, seconds or math.inf):
        left = seconds_left(crew, paces)
        if left is None:
            unknown += len(crew)
            continue
        total += left
        lane = min(range(jobs), key=lanes.__getitem__)
        start, lanes[lane] = lanes[lane], lanes[lane] + left
        finished += len(crew) * (lanes[lane] <= seconds)
        begun += len(crew) * (start < seconds < lanes[lane])
    text = f"expects to finish {finished} of {len(configs)} runs and to take {begun} on; " if seconds else ""
    text += (
        f"{spell_hours(total / jobs / 3600)} of work left on this machine" if total else "nothing left that is known"
    )
    at_once = max((pace.together for pace in paces.values()), default=1)
    text += f", up to {at_once} seeds at once" if at_once > 1 and total else ""
    return text + (f", and {unknown} runs that cannot be told" if unknown else "")
