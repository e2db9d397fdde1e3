"""Finished runs in a form small enough for git: results/summary.csv, a row a run, and results/curves/<id>.npz.

What `make figures` draws on a clone that never trained. Adding is idempotent, and stores of several machines merge.
"""

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from normloss.analysis.curves import Curve, thin
from normloss.config import science
from normloss.errors import UserError
from normloss.runs.files import write_whole
from normloss.runs.records import RunRecord

EPOCHS = "epoch_"  # prefix of what epochs.jsonl holds, in the npz
NOT_KEPT = {"sessions", "host", "command", "versions", "started", "ended"}  # of meta.json
COLUMNS = (
    "id",
    "dataset",
    "model",
    "reg",
    "lam",
    "batch_size",
    "epochs",
    "seed",
    "test_error",
    "test_error_top5",
    "test_ce",
    "train_ce",
    "norm_mean",
    "seconds",
    "device_name",
    "torch",
    "commit",
    "dirty",
    "started",
    "ended",
    "wandb",
    "config",  # what was trained, as JSON: all that a run id is made of
    "final",  # DONE
    "meta",  # the rest of meta.json
)


@dataclass(frozen=True)
class ArchivedRun:
    """A finished run as the archive holds it; stands in for a RunRecord."""

    id: str
    config: dict[str, Any]
    meta: dict[str, Any]
    final: dict[str, Any]
    path: Path  # of its curves
    state: str = "done"

    @cached_property
    def epochs(self) -> list[dict[str, Any]]:
        with np.load(self.path) as arrays:
            columns = {key.removeprefix(EPOCHS): arrays[key] for key in arrays if key.startswith(EPOCHS)}
        length = len(next(iter(columns.values()), ()))
        return [{key: values[i].tolist() for key, values in columns.items()} for i in range(length)]

    def curve(self) -> Curve:
        with np.load(self.path) as arrays:
            return Curve(*(arrays[key] for key in ("step", "mean", "low", "high")))


def curve(run: RunRecord | ArchivedRun) -> Curve:
    """The run's cross entropy over steps, the same from a store and from the archive."""
    return run.curve() if isinstance(run, ArchivedRun) else thin(run.steps()[1])


def read(results: Path) -> list[ArchivedRun]:
    """The archived runs of results/, in the order of summary.csv; none where there is no such file."""
    file = results / "summary.csv"
    if not file.exists():
        return []
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    runs = []
    for row in table.to_dict("records"):
        meta = json.loads(row["meta"]) | {key: row[key] for key in ("commit", "started", "ended", "wandb")}
        meta["dirty"] = row["dirty"] == "True"
        path = results / "curves" / f"{row['id']}.npz"
        if not path.exists():
            raise UserError(f"{file}: names run {row['id']}, whose curves are not there: {path}")
        runs.append(ArchivedRun(row["id"], json.loads(row["config"]), meta, json.loads(row["final"]), path))
    return runs


def add(records: Iterable[RunRecord], results: Path) -> tuple[list[str], list[str]]:
    """Archive the finished runs among `records`; the ids added, and those kept as they were though theirs differ."""
    file = results / "summary.csv"
    rows = pd.read_csv(file, dtype=str, keep_default_na=False).to_dict("records") if file.exists() else []
    known = {row["id"]: row for row in rows}
    added, differing = [], []
    for record in records:
        if record.state != "done":
            continue
        row = {key: "" if value is None else str(value) for key, value in _row(record).items()}
        if record.id not in known:
            (results / "curves").mkdir(parents=True, exist_ok=True)
            write_whole(results / "curves" / f"{record.id}.npz", _pack(record))
            known[record.id] = row
            added.append(record.id)
        elif known[record.id]["final"] != row["final"]:
            differing.append(record.id)
    if added:
        order = sorted(known.values(), key=_order)
        text = pd.DataFrame(order, columns=COLUMNS).to_csv(index=False, lineterminator="\n")
        write_whole(file, text.encode())
    return added, differing


def _order(row: dict[str, str]) -> tuple:
    return row["dataset"], row["model"], row["reg"], float(row["lam"]), int(row["batch_size"]), row["seed"], row["id"]


def _row(record: RunRecord) -> dict[str, Any]:
    config, meta, final = record.config, record.meta, record.final
    values = final | meta | {"id": record.id, "seed": config["seed"], "torch": meta["versions"]["torch"]}
    values |= {key: config[key]["name"] for key in ("dataset", "model", "reg")}
    values |= {"lam": config["reg"]["lam"], "batch_size": config["train"]["batch_size"]}
    values["epochs"] = config["train"]["epochs"]
    rest = {key: value for key, value in meta.items() if key not in NOT_KEPT} | {"versions": meta["versions"]}
    as_json = {"config": science(config), "final": final, "meta": rest}
    values |= {key: json.dumps(value, sort_keys=True, separators=(",", ":")) for key, value in as_json.items()}
    return {key: values.get(key) for key in COLUMNS}


def _pack(record: RunRecord) -> memoryview:
    """Single precision for what is measured once an epoch, half for each layer's norm: 30 to 100 kB a run."""
    line = curve(record)
    arrays = {"step": line.step.astype(np.int32), "mean": line.mean, "low": line.low, "high": line.high}
    for key in record.epochs[0] if record.epochs else ():
        values = np.array([np.nan if epoch[key] is None else epoch[key] for epoch in record.epochs], float)
        exact = key in ("epoch", "step")
        arrays[EPOCHS + key] = values.astype(np.int32 if exact else np.float16 if values.ndim > 1 else np.float32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getbuffer()
