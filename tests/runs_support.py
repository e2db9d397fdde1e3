"""Finished runs of typed numbers, and runs that were trained, killed and finished without a network."""

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import yaml

from normloss.analysis import layers
from normloss.config import Config
from normloss.runs.store import open_run

STEPS = 4  # per epoch, of a run without a network


def write_run(store: Path, cfg: Config, error: float, *, steps=40, epochs=4, seconds: float = 100.0) -> str:
    """A finished run whose last test error is `error`; a better epoch before it, which no statistic may pick."""
    path = store / cfg.id
    path.mkdir(parents=True)
    depth = list(layers.groups(cfg.model.model_dump()).values())[-1].stop
    records = [record(epoch, steps, 80.0 / epoch, depth) for epoch in range(1, epochs)]
    for each in records[-1:]:
        each["test_error"] = 0.01
    records += [record(epochs, steps, error, depth)]
    ce = np.geomspace(2.3, 0.02 + cfg.seed / 100, steps * epochs).astype(np.float32)
    code = {"commit": "0123456789abcdef", "dirty": False, "versions": {"torch": "2.11.0"}, "command": "train.py"}
    machine = {"host": "machine", "device": "cuda:0", "device_name": "GTX 1080 Ti"}
    times = {"started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T04:00:00+00:00", "sessions": []}
    meta = code | machine | times | {"seconds_per_epoch": seconds, "wandb": f"https://wandb.example/{cfg.id}"}
    final = records[-1] | {"id": cfg.id, "epochs": epochs, "steps": steps * epochs, "seconds": seconds * epochs}
    (path / "config.yaml").write_text(yaml.safe_dump(cfg.model_dump(mode="json")))
    (path / "epochs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
    np.savez(path / "steps.npz", step=np.arange(1, len(ce) + 1), ce=ce)
    for name, value in {"meta.json": meta, "status.json": {"state": "done"}, "DONE": final}.items():
        (path / name).write_text(json.dumps(value))
    return cfg.id


def record(epoch: int, steps: int, error: float, depth: int) -> dict:
    norms = {"norm_mean": 1.04, "norm_min": 0.9, "norm_max": 1.2, "layer_norms": [1.4 / epoch, *[1.2] * (depth - 1)]}
    train = {"epoch": epoch, "step": epoch * steps, "lr": 0.1, "lam": 0.01, "train_ce": 2.0 / epoch}
    errors = {"train_error": error / 2, "test_ce": error / 10, "test_error": error, "test_error_top5": error / 4}
    return train | errors | norms | {"penalty": 3.0, "gram_residual": 0.5, "sigma_max": 2.0, "seconds": 90.0}


@contextmanager
def session(cfg):
    """A session of the run of `cfg`, as train.py has it."""
    run = open_run(cfg)
    with run.session():
        yield run


def state_at(step):
    """A checkpoint between two epochs, as the trainer makes them."""
    return {"weights": torch.full((300,), float(step)), "step": step, "logged_steps": step}


def metrics(epochs, error=5.0):
    """What a finished run ends with."""
    measured = dict.fromkeys(("train_ce", "train_error", "test_ce", "test_error_top5", "penalty"), 1.0)
    norms = dict.fromkeys(("norm_mean", "norm_min", "norm_max"), 1.0)
    return {"epochs": epochs, "steps": epochs * STEPS, "test_error": error, **measured, **norms}


def finish(run, epochs, error=5.0):
    """Train that many epochs, then end."""
    run.describe(data="abc")
    train(run, 1, epochs)
    run.finish(metrics(epochs, error))


def log_epoch(run, epoch):
    first = (epoch - 1) * STEPS
    run.log_epoch({"epoch": epoch, "seconds": 1.5}, np.arange(first, first + STEPS))


def train(run, epoch, last):
    """Epochs up to `last`, each logged and then saved."""
    for number in range(epoch, last + 1):
        log_epoch(run, number)
        run.save(state_at(number * STEPS), number, number * STEPS)


def killed_after(cfg, last, unsaved=False):
    """The folder of a run that a kill ended after epoch `last`; unsaved: the next epoch was logged but not saved."""
    run = open_run(cfg)
    run._set_state("running", attempts=1)
    run.describe(data="abc")
    train(run, 1, last)
    if unsaved:
        log_epoch(run, last + 1)
    run._lock.release()  # as the kernel does
    return run.path


def kill_at_call(number, real):
    """`real`, until its call of this number (counted from 1), where the process dies."""
    calls = []

    def call(*arguments, **options):
        calls.append(arguments)
        if len(calls) == number:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    return call
