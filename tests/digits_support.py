"""Finished runs of typed numbers on the digits."""

import json

import runs_support
from conftest import ROOT

from normloss.analysis.entries import Methods, Training
from normloss.config import read_stored

DIGITS = {"dataset.name": "digits", "model.name": "resnet8"}
WD = {"name": "wd", "lam": 1e-4, "layers": "all", "half": True}
NL = {"name": "nl", "lam": 0.01, "layers": "conv+linear"}
ERRORS = {"wd": (2.0, 3.0, 4.0), "nl": (1.0, 1.1, 1.2)}  # percent, of seeds 0 1 2 at the last epoch
STEPS = 60
TRAINING = Training(name="digits", title="digits")
METHODS = Methods(name="digits")
BASE = json.loads((ROOT / "tests" / "data" / "identities.json").read_text())["experiments"]["demo"]["config"]
BASE["train"].pop("executor")  # as stored before the key was there


def write_run(store, reg, seed, error=5.0, state="done", model="resnet8", dataset=None, meta=None, **train):
    """A run folder; returns its id."""
    config = BASE | {
        "dataset": BASE["dataset"] | (dataset or {}),
        "model": BASE["model"] | {"name": model, "depth": int(model.removeprefix("resnet"))},
        "reg": reg,
        "train": BASE["train"] | {"batch_size": 64, "epochs": 3, "milestones": [1, 2]} | train,
        "seed": seed,
    }
    cfg = read_stored(config)
    epochs = cfg.train.epochs
    path = store / runs_support.write_run(store, cfg, error, steps=STEPS // epochs, epochs=epochs, seconds=42 / epochs)
    (path / "meta.json").write_text(json.dumps({"seconds_per_epoch": 2.0, "sessions": []} | (meta or {})))
    if state != "done":
        (path / "DONE").unlink()
        (path / "status.json").write_text(json.dumps({"state": state}))
    return cfg.id


def names(df):
    """The method and the seed of each run."""
    return sorted(df["reg.name"] + df["seed"].astype(str))


def runs_of_two_methods(store):
    """wd and nl with three seeds each, one run that was stopped and one that diverged."""
    for reg in (NL, WD):
        for seed, error in enumerate(ERRORS[reg["name"]]):
            write_run(store, reg, seed, error)
    write_run(store, NL, 3, state="incomplete")
    write_run(store, NL | {"lam": 100.0}, 0, state="diverged")
    return store
