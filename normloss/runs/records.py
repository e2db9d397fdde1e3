"""The run store as its readers see it: tables, figures, plans. torch-free; never writes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from filelock import FileLock, Timeout

from normloss.runs.files import read_json


@dataclass(frozen=True)
class RunRecord:
    """A run as the store holds it, for tables, figures and plans."""

    path: Path
    id: str
    state: str  # new running incomplete diverged failed done
    config: dict[str, Any]
    meta: dict[str, Any]
    epochs: list[dict[str, Any]]
    final: dict[str, Any] | None

    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """step (counted from 1) and the cross entropy of its batch."""
        return read_steps(self.path)


def load_runs(store: str | Path) -> list[RunRecord]:
    """Every run of a store, by id."""
    paths = sorted(path.parent for path in Path(store).glob("*/config.yaml"))
    return [load_run(path) for path in paths]


def load_run(path: Path) -> RunRecord:
    final = read_json(path / "DONE")
    state = "done" if final else (read_json(path / "status.json") or {}).get("state", "new")
    if state == "running" and not is_locked(path):
        state = "incomplete"  # killed before it could say so
    return RunRecord(
        path=path,
        id=path.name,
        state=state,
        config=yaml.safe_load((path / "config.yaml").read_text()),
        meta=read_json(path / "meta.json") or {},
        epochs=read_epochs(path),
        final=final,
    )


def is_locked(path: Path) -> bool:
    """Whether a process trains this run now."""
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a store that can only be read: believe its status
        return True
    lock.release()
    return False


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """The whole lines of epochs.jsonl; a kill may have torn the last one."""
    log = path / "epochs.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def read_steps(path: Path) -> tuple[np.ndarray, np.ndarray]:
    file = path / "steps.npz"
    if not file.exists():
        return np.empty(0, int), np.empty(0, np.float32)
    with np.load(file) as arrays:
        return arrays["step"], arrays["ce"]
