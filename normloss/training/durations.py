"""How long a run takes: from a timed step, from finished runs like it, or from the run itself. torch-free.

Work is counted in training steps; an image that is evaluated costs a third of one that is trained on.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normloss.config import Config, steps_per_epoch
from normloss.runs.files import read_json
from normloss.runs.records import RunRecord, is_done

IMAGES = {  # train, test
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "imagenet": (1_281_167, 50_000),
    "digits": (1_437, 360),
}
FORWARD = 1 / 3  # a forward pass, of a training step's cost
EVAL_BATCHES = 4  # a batch of the test set is at most so many of training's


# work --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What a run has to do, counted in training steps."""

    steps: int  # of the whole run
    per_epoch: int
    evaluation: float  # what an evaluation costs, in steps; there is one at the end of each epoch

    @property
    def total(self) -> float:
        return self.steps + self.evaluation * -(-self.steps // self.per_epoch)

    def until(self, step: int) -> float:
        """The part that is done after so many steps, evaluations included."""
        return self.total if step >= self.steps else step + self.evaluation * (step // self.per_epoch)


def work(cfg: Config, train_images: int, evaluated_images: int) -> Work:
    """Of the whole run, from how many images are trained on, and evaluated at the end of each epoch."""
    train = cfg.train
    tested = min(evaluated_images, (train.eval_batches or evaluated_images) * EVAL_BATCHES * train.batch_size)
    per_epoch = steps_per_epoch(train_images, train.batch_size)
    return Work(total_steps(cfg, per_epoch), per_epoch, FORWARD * tested / train.batch_size)


def known_work(cfg: Config) -> Work | None:
    """The same before the data are read; None for images that only their reader can count."""
    if cfg.dataset.name not in IMAGES or cfg.dataset.val == "file":
        return None
    train_images, test_images = IMAGES[cfg.dataset.name]
    held_out = cfg.dataset.val or 0  # of the training images, evaluated each epoch
    return work(cfg, max(1, train_images - held_out), test_images + held_out)


def total_steps(cfg: Config, per_epoch: int) -> int:
    """Optimizer steps of the whole run."""
    return min(cfg.train.epochs * per_epoch, cfg.train.max_steps or cfg.train.epochs * per_epoch)


def share_done(cfg: Config) -> float:
    """Of a run's work, what its checkpoint holds; by epochs where the number of images is not known."""
    path = Path(cfg.store) / cfg.id
    if is_done(path):
        return 1.0
    status = read_json(path / "status.json") or {}
    if whole := known_work(cfg):
        return whole.until(status.get("saved", 0)) / whole.total
    return min(1.0, status.get("epoch", 0) / cfg.train.epochs)


# how long ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """Of one whole run."""

    training: float  # seconds, evaluation included
    start: float  # seconds from its process's start to its first step
    source: str  # timed here | as 1a2b3c4d took on NVIDIA H100
    borrowed: bool = False  # from a run with another method

    @property
    def seconds(self) -> float:
        return self.start + self.training

    def left(self, done: float) -> float:
        """Seconds that a run needs of which the share `done` is there."""
        return 0.0 if done >= 1 else self.start + self.training * (1 - done)

    def __str__(self) -> str:
        return f"about {spell(self.seconds)} per run, {self.source}"


def like(stored: Mapping[str, Any]) -> str:
    """Of a config as run folders and the archive hold it: the same text for runs whose steps, but for the method, do
    the same work."""
    data, train = stored["dataset"], stored["train"]
    about = [data["name"], data.get("label"), data["size"], data.get("val", 0), stored["model"]]
    how = [train["batch_size"], train["micro_batch"], train["precision"], train.get("executor", "auto")]
    return json.dumps([*about, *how], sort_keys=True)


def kind(cfg: Config) -> tuple[str, str]:
    """Runs of one kind take steps of one length: those that are alike, of one method."""
    return like(cfg.stored()), cfg.reg.name


@dataclass(frozen=True)
class StepTimes:
    """Steps that were timed on this device."""

    seconds: Mapping[tuple[str, str], float]  # of a step, by kind
    start: float = 0.0  # seconds from a process's start to its first step

    def estimate(self, cfg: Config) -> Estimate | None:
        """From a step of this kind, else of a like run with another method; None where neither was timed, and for
        images that nobody has counted."""
        whole = known_work(cfg)
        if whole is None:
            return None
        if kind(cfg) in self.seconds:
            return Estimate(self.seconds[kind(cfg)] * whole.total, self.start, "timed here")
        for (alike, method), step in self.seconds.items():
            if alike == like(cfg.stored()):
                return Estimate(step * whole.total, self.start, f"as reg={method} was timed here", borrowed=True)
        return None


class FinishedTimes:
    """Finished runs, by what they have in common. Trials, cut short by train.max_steps or train.eval_batches, are no
    evidence."""

    def __init__(self, records: Iterable[RunRecord]) -> None:
        self.runs: dict[str, list[RunRecord]] = {}
        for record in records:
            if record.final and record.final["epochs"] and not record.truncated:
                self.runs.setdefault(like(record.config), []).append(record)

    def estimate(self, cfg: Config) -> Estimate | None:
        """From the newest run like this one, its own method first; None where there is none."""
        found = self.runs.get(like(cfg.stored()))
        if not found:
            return None
        own = [record for record in found if record.config["reg"]["name"] == cfg.reg.name]
        record = max(own or found, key=lambda record: record.meta.get("started", ""))
        together = record.meta.get("together", 1)  # runs of earlier versions shared a process, and its device
        assert record.final is not None  # finished
        training = record.final["seconds"] / together * _ratio(cfg, record.final["epochs"])
        shared = f", {together} seeds at once" if together > 1 else ""
        source = f"as {record.id} took on {record.meta.get('device_name', '?')}{shared}"
        return Estimate(training, record.meta.get("start_seconds", 0.0), source, borrowed=not own)


def _ratio(cfg: Config, epochs: int) -> float:
    """How much work a run is, of a like one of so many epochs that is not cut short."""
    whole = {"epochs": epochs, "max_steps": None, "eval_batches": None}
    mine, other = known_work(cfg), known_work(cfg.model_copy(update={"train": cfg.train.model_copy(update=whole)}))
    return mine.total / other.total if mine and other else cfg.train.epochs / epochs


def seconds_of_work(whole: Work, first_step: int, step: int, seconds: float) -> float:
    """Of a unit of it, from a run that took `seconds` from `first_step` to `step`; 0 before it took any."""
    done = whole.until(step) - whole.until(first_step)
    return seconds / done if done else 0.0


def spell(seconds: float) -> str:
    """40 s, 12 min, 4.6 h, 3.1 days."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days".replace(".0 days", " days")
