"""Estimates of run times: from finished runs like them, else from the run's own epochs so far. torch-free."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normloss.config import Config, trained_config
from normloss.runs.files import read_json
from normloss.runs.records import RunRecord, is_done


def total_steps(cfg: Config, per_epoch: int) -> int:
    """Return the optimizer steps of the whole run, with so many in an epoch."""
    steps = cfg.train.epochs * per_epoch
    return min(steps, cfg.train.max_steps or steps)


def share_done(cfg: Config) -> float:
    """Return the share of a run's epochs, or of its max_steps, that its checkpoint holds; 1 when it is done."""
    path = Path(cfg.store) / cfg.id
    if is_done(path):
        return 1.0
    status = read_json(path / "status.json") or {}
    steps = status.get("saved", 0) / cfg.train.max_steps if cfg.train.max_steps else 0.0
    return min(1.0, max(steps, status.get("epoch", 0) / cfg.train.epochs))


def like(stored: Mapping[str, Any]) -> str:
    """Return a text that is equal for runs whose steps, the method's part apart, do the same work."""
    trained = trained_config(stored)
    how = [trained["train"][key] for key in ("batch_size", "micro_batch", "precision")]
    return json.dumps([trained["dataset"], trained["model"], *how], sort_keys=True)


@dataclass(frozen=True)
class Estimate:
    """The time that one whole run takes."""

    training: float  # seconds, evaluation included
    start: float  # seconds from its process's start to its first step
    source: str  # as 1a2b3c4d (wd) took on NVIDIA H100

    def left(self, done: float) -> float:
        """Return the seconds that a run needs of which the share `done` is there; its process starts anew."""
        return 0.0 if done >= 1 else self.start + self.training * (1 - done)

    def __str__(self) -> str:
        return f"about {spell(self.start + self.training)} per run, {self.source}"


class Durations:
    """Estimates of run times from the runs of a store.

    Finished runs of the same network, data, batch size and precision come first, those of the same method before
    others and the newest before older ones. A run like no finished one is estimated by its own epochs so far.
    Truncated runs (train.max_steps, train.eval_batches) are no evidence.
    """

    def __init__(self, runs: Iterable[RunRecord]) -> None:
        self.runs = {run.id: run for run in runs}
        self.finished: dict[str, list[RunRecord]] = {}
        for run in self.runs.values():
            if run.final and run.final["epochs"] and not run.truncated:
                self.finished.setdefault(like(run.config), []).append(run)

    def estimate(self, cfg: Config) -> Estimate | None:
        """Return how long a run takes; None if none like it is finished and it has no epoch of its own."""
        alike = self.finished.get(like(cfg.stored()), [])
        own = [run for run in alike if run.config["reg"]["name"] == cfg.reg.name]
        run = max(own or alike, key=lambda run: run.meta.get("started", ""), default=self.runs.get(cfg.id))
        if run is None or not (run.final or run.epochs):
            return None
        seconds = sum(epoch["seconds"] for epoch in run.epochs) if run.final is None else run.final["seconds"]
        done = run.final or {"steps": run.epochs[-1]["step"], "epochs": len(run.epochs)}  # as far as it is
        steps = total_steps(cfg, done["steps"] // done["epochs"])
        source = f"as {run.id} ({run.config['reg']['name']}) took on {run.meta.get('device_name', '?')}"
        return Estimate(seconds * steps / done["steps"], run.meta.get("start_seconds", 0.0), source)


def spell(seconds: float) -> str:
    """Return a duration as people say it: 40 s, 12 min, 4.6 h, 3.1 days."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days".replace(".0 days", " days")
