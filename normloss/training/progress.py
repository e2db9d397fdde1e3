"""The state of a run in training, and its progress for people: a bar on a terminal, plain lines elsewhere."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from normloss.config import Config
from normloss.training.device import synchronize
from normloss.training.durations import spell

BAR_SECONDS, LINE_SECONDS = 1.0, 60.0  # how often a bar moves, how often a line appears within an epoch
EPOCH_LINE_SECONDS = 2.0  # short epochs share a line


@dataclass
class State:
    """Position and records of a run; with model, optimizer, regularizer and torch's generators, a checkpoint."""

    epoch: int = 0  # current, counted from 0
    step: int = 0  # done, over the run
    seconds: float = 0.0  # spent on the epoch under way
    ce: list[Tensor] = field(default_factory=list)  # mean cross entropy of each step of the epoch under way
    wrong: list[Tensor] = field(default_factory=list)  # errors of each of these steps
    began: list[Tensor] | None = None  # the filter matrices that the epoch under way began with, where they are known


class Progress:
    """Cross entropy, error, images/s and the time left, of the run and of the sweep that it is part of."""

    def __init__(self, cfg: Config, last_step: int, first_step: int) -> None:
        self.epochs, self.batch_size, self.last_step = cfg.train.epochs, cfg.train.batch_size, last_step
        self.sweep = json.loads(os.environ.get("NORMLOSS_SWEEP", "null"))
        self.label = f"{cfg.id} {self.sweep['label'] if self.sweep else cfg.label}"
        self.start_seconds = time.process_time()  # that this process took to come here
        self.first_step = self.now_step = first_step
        self.began = self.shown = self.written = time.monotonic()
        self.rate = 0.0  # images per second, of the newest epoch's training
        # two runs of a sweep that train at once would draw over each other's bars
        bar = sys.stdout.isatty() and not (self.sweep and self.sweep["jobs"] > 1)
        self.interval = BAR_SECONDS if bar else LINE_SECONDS
        self.bar = tqdm(
            total=last_step,
            initial=first_step,
            file=sys.stdout,
            disable=not bar,
            bar_format=f"{cfg.id} {{percentage:3.0f}}%|{{bar:20}}| {{desc}}",
            dynamic_ncols=True,
        )

    @property
    def due(self) -> bool:
        return time.monotonic() - self.shown > self.interval

    def step(self, state: State) -> None:
        """Show the step that `state` is at; reads the device, so call it when `due` only."""
        self.shown, self.now_step = time.monotonic(), state.step
        recent = state.ce[-20:]
        ce = torch.stack(recent).mean().item()  # device sync
        error = 100 * torch.stack(state.wrong[-20:]).sum().item() / (self.batch_size * len(recent))
        text = (
            f"epoch {state.epoch + 1}/{self.epochs}  ce {ce:.3f}  error {error:.1f} %"
            f"  {self.images_per_second(state.step):,.0f} images/s  {self.left()}"
        )
        if self.bar.disable:
            print(f"{self.label}  {text}", flush=True)
        else:
            self.bar.n = state.step
            self.bar.set_description_str(text)

    def epoch(self, record: dict) -> None:
        """Print a line for a finished epoch."""
        now, self.now_step = time.monotonic(), record["step"]
        if now - self.written < EPOCH_LINE_SECONDS and record["step"] < self.last_step:
            return
        self.written = now
        val = f"  val {record['val_error']:.2f} %" if "val_error" in record else ""
        tqdm.write(
            f"{self.label}  epoch {record['epoch']}/{self.epochs}  ce {record['train_ce']:.3f}"
            f"  error: train {record['train_error']:.2f} %  test {record['test_error']:.2f} %{val}"
            f"  norms {record['norm_mean']:.3f} ({record['norm_min']:.2f}-{record['norm_max']:.2f})"
            f"  {self.rate:,.0f} images/s  {self.left()}",
            file=sys.stdout,
        )
        sys.stdout.flush()

    @contextmanager
    def training(self, state: State, device: torch.device) -> Iterator[None]:
        """Within this block an epoch's steps are timed for its images/s; testing follows outside."""
        self.epoch_began, self.epoch_step = time.monotonic(), state.step
        yield
        synchronize(device)  # the steps that are still queued are training's
        self.rate = self.images_per_second(state.step)

    def images_per_second(self, step: int) -> float:
        return (step - self.epoch_step) * self.batch_size / max(1e-9, time.monotonic() - self.epoch_began)

    def left(self) -> str:
        run = self.seconds(self.last_step - self.now_step)
        if not self.sweep:
            return f"{spell(run)} left"
        # the runs not yet begun count as long as this one
        whole = self.start_seconds + self.seconds(self.last_step)
        sweep = run + whole * math.ceil(self.sweep["waiting"] / self.sweep["jobs"])
        return f"{spell(run)} left, sweep {self.sweep['member']}/{self.sweep['members']} about {spell(sweep)}"

    def seconds(self, steps: int) -> float:
        """Return how long so many steps take, by the run's own so far, evaluations included."""
        return steps * (time.monotonic() - self.began) / max(1, self.now_step - self.first_step)
