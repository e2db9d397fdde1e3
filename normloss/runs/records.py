"""A run as its readers see it, from its folder in a store or its file in the archive. torch-free; never changes a run.

Reading takes the config and DONE; logs are read when somebody asks for them. What cannot be read is named and left out.
"""

import fcntl
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from normloss.config.identity import is_truncated, run_id, without_retired
from normloss.errors import UserError
from normloss.runs.curves import Curve, thin
from normloss.runs.files import Damaged, load_arrays, load_json, load_yaml, read_bytes

# of a run folder, in the order in which they may be written: what says how far the run is comes last
FILES = ("config.yaml", "meta.json", "epochs.jsonl", "steps.npz", "status.json", "last.pt", "DONE")
STATES = ("new", "running", "incomplete", "diverged", "failed", "done")
# numbers that DONE holds
FINAL = (
    *("epochs", "steps", "seconds", "train_ce", "train_error", "test_ce", "test_error", "test_error_top5"),
    *("penalty", "norm_mean", "norm_min", "norm_max"),
)
EPOCHS = "epoch_"  # prefix of what epochs.jsonl holds, in an archive file


class RunWarning(UserWarning):
    """A run is excluded; a command reports it at its end."""


@dataclass(frozen=True)
class RunRecord:
    """A run for tables, figures and plans, from its folder or from the archive. Logs are read on first use."""

    path: Path  # its folder, or its archive file
    id: str
    state: str  # one of STATES
    config: dict[str, Any]  # what was trained; an unfinished run's has the store's, W&B's and the device's keys too
    final: dict[str, Any] | None  # of a run that is done: DONE, without the config that newer ones hold

    @property
    def truncated(self) -> bool:
        """Whether the run was cut short on purpose, which makes it no evidence for anything."""
        return is_truncated(self.config)

    @property
    def archived(self) -> bool:
        """Whether this is a run of the archive, which has no folder."""
        return self.path.suffix == ".npz"

    @cached_property
    def meta(self) -> dict[str, Any]:
        """Code, versions, machine and times; empty before the run was trained."""
        if self.archived:
            return json.loads(self._arrays["meta"].item())
        return load_json(self.path / "meta.json") if self._has("meta.json") else {}

    @cached_property
    def epochs(self) -> list[dict[str, Any]]:
        """The metrics of each epoch: one dict per line of epochs.jsonl."""
        if not self.archived:
            records = read_epochs(self.path) if self._has("epochs.jsonl") else []
            self._check_length("epochs.jsonl", "epochs", len(records))
            return records
        columns = {key.removeprefix(EPOCHS): v.tolist() for key, v in self._arrays.items() if key.startswith(EPOCHS)}
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Return step (counted from 1) and the cross entropy of its batch, (steps,) each; only a folder has them."""
        if not self._has("steps.npz"):
            return np.empty(0, int), np.empty(0, np.float32)
        step, ce = read_steps(self.path)
        self._check_length("steps.npz", "steps", len(ce))
        return step, ce

    def curve(self) -> Curve:
        """Return the cross entropy over steps, thinned: the same from a folder and from the archive."""
        if not self.archived:
            return thin(self.steps()[1])
        return Curve(*(self._arrays[key] for key in ("step", "mean", "low", "high")))

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        return load_arrays(self.path)

    def _check_length(self, name: str, what: str, length: int) -> None:
        if self.final is not None and length != self.final[what]:
            raise Damaged(self.path / name, f"holds {length} of {self.final[what]} {what}")

    def _has(self, name: str) -> bool:
        return self.final is not None or (self.path / name).exists()  # a finished run must have it


# many runs ---------------------------------------------------------------------------------------


def existing_folder(folder: Path) -> Path:
    """Return a folder that an argument names; raises UserError where there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder.absolute()}: no such folder")
    return folder


def load_runs(store: str | Path) -> list[RunRecord]:
    """Return every run of a store, by id; none where there is no such folder.

    A folder whose config or DONE cannot be read, or whose name is not the id of its config, gives a RunWarning.
    """
    return _load(run_folders(Path(store)), load_run)


def load_archive(results: Path) -> list[RunRecord]:
    """Return the finished runs that git has in results/archive, by id; a damaged file gives a RunWarning."""
    return _load(sorted((results / "archive").glob("*.npz")), _load_archived)


def run_folders(store: Path) -> list[Path]:
    """Return the folders of a store that hold a file of a run, by name; none where there is no such store."""
    try:
        names = sorted(name for name in os.listdir(store) if name[0] != ".")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"store: must be a folder that can be read, got {store} ({error.strerror})") from None
    return [store / name for name in names if _may_be_run(f"{store}/{name}")]


def _may_be_run(path: str) -> bool:
    try:
        return not set(FILES).isdisjoint(os.listdir(path))
    except NotADirectoryError:
        return False
    except OSError:  # somebody else's: load_run says why it cannot be read
        return True


def _load(paths: list[Path], load: Callable[[Path], RunRecord]) -> list[RunRecord]:
    records = []
    for path in paths:
        try:
            records.append(load(path))
        except Damaged as damage:
            warnings.warn(f"{damage}; this run is excluded", RunWarning, stacklevel=3)
    return records


# one run -----------------------------------------------------------------------------------------


def load_run(path: Path) -> RunRecord:
    """Return the run in a folder; raises Damaged where its config, DONE or state cannot be read."""
    if os.path.islink(path):
        raise Damaged(path, "is a symbolic link")
    done = f"{path}/DONE"
    if not os.path.lexists(done):
        return RunRecord(path, path.name, _state(path), read_config(path), None)
    final = load_json(done)
    if "config" not in final:  # of version 0.2 or earlier
        return _finished(path, done, read_config(path), final)
    config = final.pop("config")
    _check_id(done, config, path.name)
    return _finished(path, done, config, final)


def _load_archived(file: Path) -> RunRecord:
    arrays = load_arrays(file, ("config", "final"))
    try:
        config, final = (json.loads(arrays[key].item()) for key in ("config", "final"))
    except ValueError as error:
        raise Damaged(file, f"is damaged ({error})") from None
    _check_id(file, config, file.stem)
    return _finished(file, file, config, final)


def _finished(path: Path, file: Path | str, config: dict[str, Any], final: dict[str, Any]) -> RunRecord:
    for key in FINAL:
        if not isinstance(final.get(key), int | float):
            raise Damaged(file, f"lacks {key}")
    return RunRecord(path, path.stem, "done", config, final)


def _check_id(file: Path | str, config: dict[str, Any], id: str) -> None:
    try:
        own = run_id(config)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise Damaged(file, "holds no config of a run") from None
    if own != id:
        raise Damaged(file, f"holds the config of run {own}: a run is named by the id of its own config")


def _state(path: Path) -> str:
    if not os.path.exists(path / "status.json"):
        return "new"
    state = load_json(path / "status.json").get("state")
    if state not in STATES:
        raise Damaged(path / "status.json", f"has no state that a run can be in, got {state!r}")
    killed = state == "done" or (state == "running" and not is_locked(path))  # before it could say so, or write DONE
    return "incomplete" if killed else state


def read_config(path: Path) -> dict[str, Any]:
    """Return the whole config of the run in a folder, without retired keys; raises Damaged where it is not its own."""
    config = without_retired(load_yaml(f"{path}/config.yaml"))
    _check_id(f"{path}/config.yaml", config, path.name)
    return config


def is_done(path: Path) -> bool:
    """Return whether the run in a folder is finished, by a DONE that can be read."""
    try:
        return load_run(path).state == "done"
    except Damaged:
        return False


def is_locked(path: Path) -> bool:
    """Return whether a process trains this run now; writes nothing, so that a read-only store answers too."""
    try:
        lock = os.open(path / ".lock", os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # what FileLock takes for itself, shared for a moment
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of epochs.jsonl; a kill may have torn the last one, which is left out. Raises Damaged."""
    file = path / "epochs.jsonl"
    content = read_bytes(file)
    records = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            record = json.loads(line)
            whole = record["epoch"] == number and "seconds" in record
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise Damaged(file, f"is damaged in line {number} (epoch {number} expected)")
        records.append(record)
    return records


def read_steps(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return step (counted from 1) and the cross entropy of its batch from steps.npz; raises Damaged."""
    arrays = load_arrays(path / "steps.npz", ("step", "ce"))
    return arrays["step"], arrays["ce"]
