"""What a run folder holds, file by file, and what is wrong with one that somebody, or something, has damaged.

Nothing here writes, follows a symbolic link, or believes what a file says of itself.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from normloss.config import read_stored, run_id
from normloss.config.identity import without_retired
from normloss.runs.files import Damaged, parse_json, parse_yaml, printable, read_regular

MOST_BYTES = {  # that a file of a run folder may have
    "config.yaml": 2**16,
    "meta.json": 2**24,
    "status.json": 2**16,
    "epochs.jsonl": 2**28,
    "steps.npz": 2**30,
    "DONE": 2**20,
    "last.pt": 2**32,
}
STATES = ("new", "running", "incomplete", "diverged", "failed", "done")
FINAL = (  # numbers that DONE holds
    "epochs",
    "steps",
    "seconds",
    "train_ce",
    "train_error",
    "test_ce",
    "test_error",
    "test_error_top5",
    "penalty",
    "norm_mean",
    "norm_min",
    "norm_max",
)


class BadRun(Exception):
    """A run folder that cannot be used; str() is the file, and what is wrong with it."""


def read(path: Path, name: str) -> bytes:
    """A file of a run folder; raises Damaged."""
    return read_regular(path / name, MOST_BYTES[name])


def read_config(path: Path, id: str) -> dict[str, Any]:
    """The stored config of the run `id`, without keys that are gone since; raises Damaged where it is no such one."""
    stored = parse_yaml(read(path, "config.yaml"))
    try:
        read_stored(stored)
        own = run_id(stored)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise Damaged(f"is no config of a run ({key}: {first['msg']})") from None
    if own != id:
        raise Damaged(f"is that of run {own}: a folder is named by the id of its own config")
    return without_retired(stored)


def read_status(path: Path) -> dict[str, Any]:
    status = parse_json(read(path, "status.json"))
    if status.get("state") not in STATES:
        raise Damaged(f"has no state that a run can be in, got {status.get('state')!r}")
    if not all(isinstance(status.get(key, 0), int) for key in ("attempts", "epoch", "step", "saved")):
        raise Damaged("has a count that is no whole number")
    return status


def read_meta(path: Path) -> dict[str, Any]:
    meta = parse_json(read(path, "meta.json"))
    if not isinstance(meta.get("sessions"), list) or not all(isinstance(each, dict) for each in meta["sessions"]):
        raise Damaged("lacks its sessions")
    if not isinstance(meta.get("versions", {}), dict):
        raise Damaged("lacks its versions")
    return meta


def read_done(path: Path, id: str) -> dict[str, Any]:
    """The final metrics; all of FINAL are numbers."""
    final = parse_json(read(path, "DONE"))
    check_final(final, id)
    return final


def check_final(final: Mapping[str, Any], id: str) -> None:
    """Raises Damaged where these cannot be the final metrics of run `id`."""
    for key in FINAL:
        if not _is_number(final.get(key)):
            raise Damaged(f"lacks {key}")
    if final.get("id") != id:
        raise Damaged(f"is that of run {final.get('id')!r}")


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """The whole lines of epochs.jsonl, checked; a kill may have torn the last one, which is left out."""
    content = read(path, "epochs.jsonl")
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise Damaged(f"is damaged in line {number}") from None
        if not isinstance(record, dict) or record.get("epoch") != number or not _is_number(record.get("seconds")):
            raise Damaged(f"is damaged in line {number} (epoch {number} expected)")
        for key, value in record.items():
            if type(value) is not float and not _is_measured(value, records[-1].get(key) if records else None):
                raise Damaged(f"is damaged in line {number} ({key})")
        records.append(record)
    return records


def read_steps(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """step (counted from 1) and the cross entropy of its batch, float32."""
    try:
        content = io.BytesIO(read(path, "steps.npz"))
        with zipfile.ZipFile(content) as archive:
            # stored as they are, so that no small file unfolds into a large one
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise Damaged("is damaged (compressed)")
        content.seek(0)
        with np.load(content, allow_pickle=False) as arrays:
            step, ce = arrays["step"], arrays["ce"]
    except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise Damaged(f"is damaged ({' '.join(str(error).split())[:100]})") from None
    if ce.dtype != np.float32 or ce.ndim != 1 or not np.array_equal(step, np.arange(1, len(ce) + 1)):
        raise Damaged("is damaged (no cross entropy for each step)")
    return step, ce


def examine(path: Path, names: set[str]) -> dict[str, Any]:
    """config, meta, status and final of the run in a folder that has the files `names`.

    Raises BadRun, which names the first file that is gone, damaged, or does not fit the others.
    """
    id = path.name
    found: dict[str, Any] = {"final": None, "meta": {}, "status": {"state": "new"}}
    name = "config.yaml"
    try:
        found["config"] = read_config(path, id)
        if "DONE" in names:
            name = "DONE"
            found["final"] = read_done(path, id)
        name = "status.json"
        begun = bool(names - {"config.yaml"})
        if begun:
            found["status"] = read_status(path)
        final, status = found["final"], found["status"]
        if status["state"] == "done" and final is None:
            name = "DONE"
            raise Damaged("is gone")
        name = "meta.json"
        logged = final is not None or status.get("epoch", 0) > 0
        if logged or name in names:
            found["meta"] = read_meta(path)
        name = "epochs.jsonl"
        epochs = read_epochs(path) if logged or name in names else []
        name = "steps.npz"
        steps = read_steps(path)[0] if logged or name in names else np.empty(0, int)
        if final is not None:
            name = "epochs.jsonl"
            _refuse_other(epochs, final)
            name = "steps.npz"
            if len(steps) != final["steps"]:
                raise Damaged(f"holds {len(steps)} of {final['steps']} steps")
    except Damaged as damage:
        raise BadRun(printable(f"{name} {damage}")) from None
    return found


def _refuse_other(epochs: list[dict[str, Any]], final: Mapping[str, Any]) -> None:
    if len(epochs) != final["epochs"]:
        raise Damaged(f"holds {len(epochs)} of {final['epochs']} epochs")
    for key in FINAL:
        if key in epochs[-1] and key != "seconds" and not _is_same(epochs[-1][key], final[key]):
            raise Damaged(f"and DONE differ in {key}")


def _is_same(one: Any, other: Any) -> bool:
    return one == other or (one != one and other != other)  # NaN is as good as itself


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**63)  # true is an int, and no number


def _is_measured(value: Any, before: Any) -> bool:
    """A number, null, or a list of numbers as long as the epoch's before."""
    if isinstance(value, list):
        same = not isinstance(before, list) or len(before) == len(value)
        return same and all(type(number) is float or _is_number(number) for number in value)
    return value is None or _is_number(value)
