"""Finished runs keep their weights alone: what only going on needs goes, which is half of a checkpoint and more."""

import hashlib
import io
import pickle
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from normloss.runs.files import find_damage, write_whole
from normloss.runs.records import load_run

KEPT = ("id", "model", "reg", "epoch", "step")  # of a checkpoint


def prune(path: Path, dry: bool = False) -> int:
    """Bytes that the checkpoints of the finished run in `path` take less than before; dry: would take.

    A run that is in use, not finished, or whose last.pt is gone or damaged stays as it is: 0 bytes. Everything else in
    the folder stays too. Raises BadRun for a folder that is no whole run.
    """
    if load_run(path).state != "done":
        return 0
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return 0
    with lock:
        weights = _weights(path / "last.pt")
        if weights is None:
            return 0
        useless = [path / "last.pt.prev", *path.glob("*.corrupt")]
        freed = sum(file.stat().st_size for file in useless if file.is_file())
        less = (path / "last.pt").stat().st_size - len(weights)
        if not dry:
            if less > 0:
                write_whole(path / "last.pt", weights)
            for file in useless:
                file.unlink(missing_ok=True)
        return freed + max(0, less)


def _weights(file: Path) -> bytes | None:
    """The content of a checkpoint without what only going on needs; None for a damaged one."""
    if find_damage(file) is not None:
        return None
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        return None
    buffer = io.BytesIO()
    torch.save({key: state[key] for key in KEPT if key in state}, buffer)
    return buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest()
