"""Finished runs in a form small enough for git: results/summary.csv, one row per run, and results/curves/<id>.npz.

What `make figures` draws on a clone that never trained. Adding is idempotent, and stores of several machines merge.
"""

import csv
import io
import json
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from normloss.analysis.curves import Curve, thin
from normloss.config import run_id, science
from normloss.config.identity import is_trial
from normloss.errors import UserError
from normloss.runs.contract import check_final
from normloss.runs.files import Damaged, parse_json, write_whole
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
    "trial",  # "3 steps", "on 1 test batches": no evidence; empty for a whole run
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
ALONE = ("commit", "dirty", "started", "ended", "wandb")  # in no other column; the rest follows from the last three
WITHOUT_TRIAL = tuple(column for column in COLUMNS if column != "trial")  # as version 0.1.0 wrote it
MARKS = ("<<<<<<<", "=======", ">>>>>>>")  # of a merge that git could not do

Row = dict[str, str]


@dataclass(frozen=True)
class ArchivedRun:
    """A finished run as the archive holds it; stands in for a RunRecord."""

    id: str
    config: dict[str, Any]
    meta: dict[str, Any]
    final: dict[str, Any]
    path: Path  # of its curves
    state: str = "done"

    @property
    def trial(self) -> bool:
        """Whether it was cut short on purpose: no evidence for anything."""
        return is_trial(self.config)

    @cached_property
    def epochs(self) -> list[dict[str, Any]]:
        columns = {key.removeprefix(EPOCHS): values for key, values in self._arrays().items() if key.startswith(EPOCHS)}
        length = len(next(iter(columns.values()), ()))
        return [{key: values[i].tolist() for key, values in columns.items()} for i in range(length)]

    def curve(self) -> Curve:
        arrays = self._arrays()
        return Curve(*(arrays[key] for key in ("step", "mean", "low", "high")))

    def _arrays(self) -> dict[str, np.ndarray]:
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.path}: is damaged ({reason}); git checkout brings it back") from None


def curve(run: RunRecord | ArchivedRun) -> Curve:
    """The run's cross entropy over steps, the same from a store and from the archive."""
    return run.curve() if isinstance(run, ArchivedRun) else thin(run.steps()[1])


# reading -----------------------------------------------------------------------------------------


def read(results: Path) -> list[ArchivedRun]:
    """The archived runs of results/, in the order of summary.csv; none where there is no such file.

    Raises UserError, with file and line, for a file that was changed by anything but `add`.
    """
    file = results / "summary.csv"
    return [_run(file, number, row) for number, row in _rows(file)]


def _run(file: Path, number: int, row: Row) -> ArchivedRun:
    """The run of a row, every column of which must follow from its config, final and meta."""
    try:
        config, final, meta = (_json(row, key) for key in ("config", "final", "meta"))
        try:
            own = run_id(config)
            trial = _trial(config)
        except (KeyError, TypeError):
            raise Damaged("config is no config of a run") from None
        if row["id"] != own:
            raise Damaged(f"id is {row['id']}, and its config is that of run {own}")
        check_final(final, own)
        expected = _columns(config, final, meta) | {key: row[key] for key in ALONE} | {"id": own, "trial": trial}
        for key in COLUMNS:
            if key in expected and row[key] != _text(expected[key]):
                raise Damaged(f"{key} is {row[key]}, and its config, final and meta say {_text(expected[key])}")
    except Damaged as damage:
        raise _refusal(file, number, str(damage)) from None
    meta |= {key: row[key] for key in ("commit", "started", "ended", "wandb")}
    meta["dirty"] = row["dirty"] == "True"
    path = file.parent / "curves" / f"{own}.npz"
    if not path.exists():
        raise UserError(f"{file}: names run {own}, whose curves are not there: {path}")
    return ArchivedRun(own, config, meta, final, path)


def _json(row: Row, key: str) -> dict[str, Any]:
    try:
        return parse_json(row[key].encode())
    except Damaged as damage:
        raise Damaged(f"{key} {damage}") from None


def _rows(file: Path) -> Iterator[tuple[int, Row]]:
    """(line, cells by column) of each row; an empty cell where the file is older than the column."""
    if not file.exists():
        return
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: must be a text in UTF-8 ({error})") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith(MARKS):
            raise _refusal(file, number, f"has a mark of a merge that git could not do: {line[:20]}")
    reader = csv.reader(io.StringIO(text), strict=True)
    seen: set[str] = set()
    try:
        header = tuple(next(reader, ()))
        if header not in (COLUMNS, WITHOUT_TRIAL):
            raise _refusal(file, 1, f"must name the columns {','.join(COLUMNS[:4])},..., got {','.join(header)[:60]!r}")
        for cells in reader:
            if len(cells) != len(header):
                raise _refusal(file, reader.line_num, f"must have {len(header)} columns, got {len(cells)}")
            row = {"trial": ""} | dict(zip(header, cells, strict=True))
            if row["id"] in seen:
                raise _refusal(file, reader.line_num, f"names run {row['id']} again")
            seen.add(row["id"])
            yield reader.line_num, row
    except csv.Error as error:
        raise _refusal(file, reader.line_num, f"is no CSV ({error})") from None


def _refusal(file: Path, number: int, what: str) -> UserError:
    return UserError(f"{file}, line {number}: {what}; a spreadsheet may have saved it: git checkout brings it back")


# adding ------------------------------------------------------------------------------------------


def add(records: Iterable[RunRecord], results: Path, trials: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Archive the finished runs among `records`; the ids added, and those kept as they were though theirs differ.

    trials: the ids of trials to archive too; any other trial is left out.
    """
    file = results / "summary.csv"
    read(results)  # refuses what was damaged, rather than writing it again
    known = {row["id"]: row for _, row in _rows(file)}
    added, differing = [], []
    for record in records:
        if record.state != "done" or (record.trial and record.id not in trials):
            continue
        row = {key: _text(value) for key, value in _row(record).items()}
        if record.id not in known:
            (results / "curves").mkdir(parents=True, exist_ok=True)
            write_whole(results / "curves" / f"{record.id}.npz", _pack(record))
            known[record.id] = row
            added.append(record.id)
        elif known[record.id]["final"] != row["final"]:
            differing.append(record.id)
    if added:
        out = io.StringIO()
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(known.values(), key=_order))
        write_whole(file, out.getvalue().encode())
    return added, differing


def _order(row: Mapping[str, str]) -> tuple:
    return row["dataset"], row["model"], row["reg"], float(row["lam"]), int(row["batch_size"]), row["seed"], row["id"]


def _row(record: RunRecord) -> dict[str, Any]:
    config, meta, final = science(record.config), record.meta, record.final
    assert final is not None  # it is done
    rest = {key: value for key, value in meta.items() if key not in NOT_KEPT} | {"versions": meta.get("versions", {})}
    row = _columns(config, final, rest) | {key: meta.get(key) for key in ALONE}
    row |= {"id": record.id, "trial": _trial(config)}
    as_json = {"config": config, "final": final, "meta": rest}
    return row | {key: json.dumps(value, sort_keys=True, separators=(",", ":")) for key, value in as_json.items()}


def _columns(config: dict[str, Any], final: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    """What the table shows of a run, for whoever opens it in a spreadsheet."""
    measured = ("test_error", "test_error_top5", "test_ce", "train_ce", "norm_mean", "seconds")
    return {
        **{key: config[key]["name"] for key in ("dataset", "model", "reg")},
        "lam": config["reg"]["lam"],
        "batch_size": config["train"]["batch_size"],
        "epochs": config["train"]["epochs"],
        "seed": config["seed"],
        **{key: final[key] for key in measured},
        "device_name": meta.get("device_name"),
        "torch": meta.get("versions", {}).get("torch"),
    }


def _trial(config: dict[str, Any]) -> str:
    steps, batches = config["train"]["max_steps"], config["train"]["eval_batches"]
    parts = [f"{steps} steps"] if steps else []
    return ", ".join([*parts, f"on {batches} test batches"] if batches else parts)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _pack(record: RunRecord) -> memoryview:
    """Single precision for what is measured once an epoch, half for each layer's norm: 30 to 100 kB a run."""
    line = curve(record)
    arrays: dict[str, Any] = {"step": line.step.astype(np.int32), "mean": line.mean, "low": line.low, "high": line.high}
    keys = dict.fromkeys(key for epoch in record.epochs for key in epoch)  # a key may be newer than the run's start
    for key in keys:
        values = _column([epoch.get(key) for epoch in record.epochs])
        exact = key in ("epoch", "step")
        arrays[EPOCHS + key] = values.astype(np.int32 if exact else np.float16 if values.ndim > 1 else np.float32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getbuffer()


def _column(cells: list[Any]) -> np.ndarray:
    """(epochs,) or (epochs, layers); NaN for what an epoch lacks."""
    rows = [len(cell) for cell in cells if isinstance(cell, list)]
    missing = np.full(rows[0], np.nan) if rows else np.nan
    return np.array([missing if cell is None else cell for cell in cells], float)
