"""The run store as its readers see it: tables, figures, plans. torch-free; never changes a run."""

import fcntl
import os
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from normloss.config.identity import is_trial
from normloss.errors import UserError
from normloss.runs import contract
from normloss.runs.cache import Cache, Stats, stat_files
from normloss.runs.contract import BadRun
from normloss.runs.files import Damaged, printable


class RunWarning(UserWarning):
    """A folder of a store is left out; a command tells it at its end."""


class AnyRun(Protocol):
    """What a RunRecord shares with a run of the archive in results/ (analysis/archive.py)."""

    @property
    def id(self) -> str: ...

    @property
    def state(self) -> str: ...

    @property
    def config(self) -> dict[str, Any]: ...

    @property
    def meta(self) -> dict[str, Any]: ...

    @property
    def final(self) -> dict[str, Any] | None: ...

    @property
    def trial(self) -> bool: ...

    @property
    def epochs(self) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class RunRecord:
    """A run as the store holds it, for tables, figures and plans."""

    path: Path
    id: str
    state: str  # new running incomplete diverged failed done
    config: dict[str, Any]
    meta: dict[str, Any]
    final: dict[str, Any] | None  # of a run that is done

    @property
    def trial(self) -> bool:
        """Whether it was cut short on purpose: no evidence for anything."""
        return is_trial(self.config)

    @cached_property
    def epochs(self) -> list[dict[str, Any]]:
        return read_epochs(self.path)

    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """step (counted from 1) and the cross entropy of its batch."""
        return read_steps(self.path)


def existing_store(store: str | Path) -> Path:
    """The folder of a store that was asked for by name; raises UserError where there is none."""
    if not Path(store).is_dir():
        raise UserError(
            f"{Path(store).absolute()}: no such store; runs are in results/runs unless train.py was given store=DIR"
        )
    return Path(store)


def load_runs(store: str | Path) -> list[RunRecord]:
    """Every run of a store, by id; none where there is no such folder.

    A run that has something wrong with it is left out, with a RunWarning that says what.
    """
    folders = _folders(Path(store))
    cache = Cache(Path(store), len(folders))
    records = []
    for path, stats in folders:
        try:
            records.append(_record(path, stats, cache))
        except BadRun as bad:
            warnings.warn(f"{printable(str(path))} is left out: {bad}", RunWarning, stacklevel=2)
    cache.save({path.name for path, _ in folders})
    return records


def load_run(path: Path) -> RunRecord:
    """The run in a folder; raises BadRun where something is wrong with it."""
    return _record(path, stat_files(str(path)), Cache(path.parent, 0))


def _folders(store: Path) -> list[tuple[Path, Stats]]:
    """The folders that hold a file of a run, by name, with what they hold."""
    try:
        with os.scandir(store) as entries:
            names = sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"store: must be a folder that can be read, got {store} ({error.strerror})") from None
    folders = []
    for name in names:
        try:
            stats = stat_files(os.path.join(store, name))
        except FileNotFoundError:  # a run that was refused, and so took its folder away again
            continue
        except OSError as error:
            where = printable(str(store / name))
            warnings.warn(f"{where} is left out: it cannot be read ({error.strerror})", RunWarning, stacklevel=3)
            continue
        if stats:
            folders.append((store / name, stats))
    return folders


def _record(path: Path, stats: Stats, cache: Cache) -> RunRecord:
    found = cache.get(path.name, stats)
    if found is None:
        try:
            found = contract.examine(path, set(stats))
        except BadRun as bad:
            found = {"wrong": str(bad)}
        cache.put(path.name, stats, found)
    if "wrong" in found:
        raise BadRun(found["wrong"])
    state = "done" if found["final"] else found["status"]["state"]
    if state == "running" and not is_locked(path):
        state = "incomplete"  # killed before it could say so
    return RunRecord(path, path.name, state, found["config"], found["meta"], found["final"])


def is_done(path: Path) -> bool:
    """Whether the run in a folder is finished, by a DONE that can be read."""
    try:
        contract.read_done(path, path.name)
    except Damaged:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Whether a process trains this run now; nothing is written, so that a store that can only be read answers too."""
    try:
        lock = os.open(path / ".lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
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
    """The whole lines of epochs.jsonl, none where there is no such file; raises BadRun for a damaged one."""
    if not (path / "epochs.jsonl").exists():
        return []
    try:
        return contract.read_epochs(path)
    except Damaged as damage:
        raise BadRun(f"{path}: epochs.jsonl {damage}") from None


def read_steps(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not (path / "steps.npz").exists():
        return np.empty(0, int), np.empty(0, np.float32)
    try:
        return contract.read_steps(path)
    except Damaged as damage:
        raise BadRun(f"{path}: steps.npz {damage}") from None
