"""A window of time on some machine: which missing work comes first in it, what to expect of it, when to stop."""

import time
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


def seconds_left(cfg: Config, paces: dict[tuple, Pace]) -> float | None:
    """Until the run is done on this machine; None where it cannot be told."""
    pace = paces.get(kind(cfg))
    if pace is None or not knows(cfg):
        return None
    steps = run_seconds(cfg, pace.step) * (1 - share_done(cfg))
    return pace.start + steps if steps else 0.0


def outlook(configs: list[Config], paces: dict[tuple, Pace], jobs: int, seconds: float = 0.0) -> str:
    """What is left, and what `seconds` are expected to bring, `jobs` processes at a time, each as fast as one alone."""
    lanes = [0.0] * jobs
    finished, begun, total, unknown = 0, 0, 0.0, 0
    for cfg in configs:
        left = seconds_left(cfg, paces)
        if left is None:
            unknown += 1
            continue
        total += left
        lane = min(range(jobs), key=lanes.__getitem__)
        start, lanes[lane] = lanes[lane], lanes[lane] + left
        finished += lanes[lane] <= seconds
        begun += start < seconds < lanes[lane]
    text = f"expects to finish {finished} of {len(configs)} runs and to take {begun} on; " if seconds else ""
    text += (
        f"{spell_hours(total / jobs / 3600)} of work left on this machine" if total else "nothing left that is known"
    )
    return text + (f", and {unknown} runs that cannot be told" if unknown else "")
