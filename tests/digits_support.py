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
NAMES: dict[str, str] = {}  # id -> what the tests call the run


def write_run(store, name, reg, seed, error=5.0, state="done", model="resnet8", dataset=None, meta=None, **train):
    """A run folder; `name` is what the tests call it, `folder` gives its path."""
    depth = {"depth": int(model.removeprefix("resnet"))}
    config = BASE | {
        "dataset": BASE["dataset"] | (dataset or {}),
        "model": BASE["model"] | {"name": model} | depth,
        "reg": reg,
        "train": BASE["train"] | {"batch_size": 64, "epochs": 3, "milestones": [1, 2]} | train,
        "seed": seed,
    }
    cfg = read_stored(config)
    NAMES[cfg.id] = name
    epochs = cfg.train.epochs
    path = store / runs_support.write_run(store, cfg, error, steps=STEPS // epochs, epochs=epochs, seconds=42 / epochs)
    (path / "meta.json").write_text(json.dumps({"seconds_per_epoch": 2.0, "sessions": []} | (meta or {})))
    if state != "done":
        (path / "DONE").unlink()
        (path / "status.json").write_text(json.dumps({"state": state}))


def id_of(name):
    return [id for id, known in NAMES.items() if known == name][-1]


def folder(store, name):
    return store / id_of(name)


def names(df):
    return sorted(NAMES[id] for id in df["id"])


def runs_of_two_methods(store):
    """wd and nl with three seeds each, one run that was stopped and one that diverged."""
    for reg in (NL, WD):
        for seed, error in enumerate(ERRORS[reg["name"]]):
            write_run(store, f"{reg['name']}{seed}", reg, seed, error)
    write_run(store, "stopped0", NL, 3, state="incomplete")
    write_run(store, "diverged0", NL | {"lam": 100.0}, 0, state="diverged")
    return store
