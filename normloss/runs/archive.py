"""The finished runs that git keeps: results/archive/<id>.npz, one file per run, and results/summary.csv for people.

A file holds config, meta and final as JSON text, the thinned cross entropy and what was measured in each epoch;
records.py reads it. Adding is idempotent, and stores of several machines can be added one after the other.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from normloss.config import trained_config
from normloss.config.labels import describe_truncation
from normloss.runs.files import write_arrays, write_whole
from normloss.runs.records import EPOCHS, RunRecord, load_archive

PRIVATE = {"sessions", "host", "command", "words"}  # of meta.json: not in git


def add(records: Iterable[RunRecord], results: Path) -> tuple[list[str], list[str]]:
    """Archive the finished runs among `records`; return the ids added, and those archived with other final numbers.

    Truncated runs are left out.
    """
    archived = {run.id: run for run in load_archive(results)}
    finished = [run for run in records if run.state == "done" and not run.truncated]
    new = {run.id: run for run in finished if run.id not in archived}
    for id, run in new.items():
        (results / "archive").mkdir(parents=True, exist_ok=True)
        write_arrays(results / "archive" / f"{id}.npz", _pack(run), np.savez_compressed)
    if new:
        rows = pd.DataFrame(map(_row, [*archived.values(), *new.values()]))
        rows = rows.sort_values(["dataset", "model", "reg", "lam", "batch_size", "seed", "id"])
        write_whole(results / "summary.csv", rows.to_csv(index=False, lineterminator="\n").encode())
    return list(new), [run.id for run in finished if run.id in archived and archived[run.id].final != run.final]


def _pack(record: RunRecord) -> dict[str, Any]:
    """Return the arrays of a run's file, of 30 to 100 kB.

    Single precision for what is measured once per epoch, half for each layer's norm.
    """
    public = {key: value for key, value in record.meta.items() if key not in PRIVATE}
    texts = {"config": trained_config(record.config), "meta": public, "final": record.final}
    arrays: dict[str, Any] = {key: np.array(json.dumps(value, sort_keys=True)) for key, value in texts.items()}
    line = record.curve()
    arrays |= {"step": line.step.astype(np.int32), "mean": line.mean, "low": line.low, "high": line.high}
    keys = dict.fromkeys(key for epoch in record.epochs for key in epoch)  # a key may be newer than the run's start
    for key in keys:
        layers = max((len(epoch[key]) for epoch in record.epochs if isinstance(epoch.get(key), list)), default=None)
        missing = np.nan if layers is None else np.full(layers, np.nan)  # what an epoch lacks, () or (layers,)
        values = np.array([missing if epoch.get(key) is None else epoch[key] for epoch in record.epochs], float)
        exact = key in ("epoch", "step")
        arrays[EPOCHS + key] = values.astype(np.int32 if exact else np.float16 if values.ndim > 1 else np.float32)
    return arrays


def _row(run: RunRecord) -> dict[str, Any]:
    """Return a run's row of the table for people."""
    config, meta, final = run.config, run.meta, run.final or {}
    measured = ("test_error", "test_error_top5", "test_ce", "train_ce", "norm_mean", "seconds")
    return {
        "id": run.id,
        **{key: config[key]["name"] for key in ("dataset", "model", "reg")},
        "lam": config["reg"]["lam"],
        "batch_size": config["train"]["batch_size"],
        "epochs": config["train"]["epochs"],
        "seed": config["seed"],
        "truncated": describe_truncation(config["train"]),  # no evidence; empty for a whole run
        **{key: final[key] for key in measured},
        "device_name": meta.get("device_name"),
        "torch": meta.get("versions", {}).get("torch"),
        **{key: meta.get(key) for key in ("commit", "dirty", "started", "ended", "wandb")},
    }
