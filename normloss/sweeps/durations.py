"""How much work a run is on this machine: from some seconds of its steps, timed in a process of its own. torch-free."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass

from normloss.config import CONFIGS, Config

IMAGES = {  # train, test
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "imagenet": (1_281_167, 50_000),
    "digits": (1_437, 360),
}
FORWARD = 1 / 3  # of a training step's cost, an evaluation's


def knows(cfg: Config) -> bool:
    """Whether the number of images is known before the data are read."""
    return cfg.dataset.name in IMAGES and cfg.dataset.val != "file"


def held_out(cfg: Config) -> int:
    """Images that leave the training set and are evaluated each epoch."""
    return cfg.dataset.val if isinstance(cfg.dataset.val, int) else 0


def total_steps(cfg: Config) -> int:
    """Of the whole run, the last short batch of each epoch counted as one."""
    steps = cfg.train.epochs * -(-max(1, IMAGES[cfg.dataset.name][0] - held_out(cfg)) // cfg.train.batch_size)
    return min(steps, cfg.train.max_steps or steps)


def run_seconds(cfg: Config, step: float) -> float:
    """The whole run's, from the seconds of a step; evaluation counted by its images."""
    evaluated = (IMAGES[cfg.dataset.name][1] + held_out(cfg)) * cfg.train.epochs / cfg.train.batch_size
    return step * (total_steps(cfg) + FORWARD * evaluated)


def kind(cfg: Config) -> tuple:
    """Runs of one kind take steps of one length."""
    return cfg.dataset.name, cfg.model.name, cfg.reg.name, cfg.train.batch_size, cfg.train.precision


@dataclass(frozen=True)
class Pace:
    """How fast runs of a kind train on this device."""

    step: float  # seconds of a step
    start: float = 0.0  # seconds from a process's start to its first step, about


def measure_paces(configs: list[Config], seconds: float | None = None) -> dict[tuple, Pace]:
    """The pace of each kind, measured on this device for some seconds each in a process of its own.

    seconds: what there is to fill; kinds that come after so much work, in the order of the configs, are left out.
    """
    kinds: dict[tuple, list[Config]] = {}
    for cfg in configs:
        kinds.setdefault(kind(cfg), []).append(cfg)
    if not kinds:
        return {}
    firsts = [runs[0] for runs in kinds.values()]
    question = {"configs": [cfg.stored() for cfg in firsts], "seconds": seconds, "began": time.time()}
    command = [sys.executable, "-P", "-m", "normloss.sweeps.step_timing"]
    environment = os.environ | {"PYTHONPATH": str(CONFIGS.parent)}  # this checkout, from whatever folder
    ran = subprocess.run(command, input=json.dumps(question), capture_output=True, text=True, env=environment)
    if ran.returncode:
        raise RuntimeError(f"timing a step failed:\n{ran.stderr}")
    answer = json.loads(ran.stdout)
    return {key: Pace(step, answer["start"]) for key, step in zip(kinds, answer["steps"], strict=False)}


def spell_hours(hours: float) -> str:
    """40 s, 12 min, 4.6 h, 3.1 days."""
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
