"""Runs of other stores into this one: what is new here or further than here, each whole or not at all.

The other store may be a stranger's. Only folders that are named by the id of their own config are taken, only the files
of a run are read, each a regular file of a sensible size, and what is written was checked after it was copied.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from normloss.errors import Locked, UserError
from normloss.runs import contract
from normloss.runs.cache import stat_files
from normloss.runs.contract import BadRun
from normloss.runs.files import Damaged, find_damage, open_regular, printable, sync_folder
from normloss.runs.records import is_locked

ID = re.compile(r"[0-9a-f]{8}")
# in this order: what says how far a run is comes after what it says
ORDER = ("config.yaml", "meta.json", "epochs.jsonl", "steps.npz", "last.pt", "DONE", "status.json")


@dataclass
class Merged:
    """What became of the runs of other stores; the values are ids, or a line for what was left as it was."""

    new: list[str] = field(default_factory=list)
    further: list[str] = field(default_factory=list)  # than the run was here
    here: list[str] = field(default_factory=list)  # as far or further
    unsaved: list[str] = field(default_factory=list)  # neither finished nor with a checkpoint to go on from
    busy: list[str] = field(default_factory=list)  # being trained, there or here
    refused: list[str] = field(default_factory=list)


def merge(stores: Iterable[Path], store: Path) -> Merged:
    """Take runs of `stores` into `store`; raises Locked while another merge is under way."""
    merged = Merged()
    store.mkdir(parents=True, exist_ok=True)
    lock = FileLock(store / ".merge.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Locked(f"another merge into {store} is under way") from None
    with lock:
        _remove_copies(store)  # of a merge that was killed
        try:
            for other in stores:
                if other.samefile(store):
                    raise UserError(f"{other}: is the store that its runs would go into")
                _merge_store(other, store, merged)
        finally:  # a signal may come between a folder's making and the block that removes it
            _remove_copies(store)
    return merged


def _remove_copies(store: Path) -> None:
    """Also where a signal comes in the middle of it."""
    try:
        for left in store.glob(".merge-*"):
            shutil.rmtree(left)
    except KeyboardInterrupt:
        for left in store.glob(".merge-*"):
            shutil.rmtree(left)
        raise


def _merge_store(other: Path, store: Path, merged: Merged) -> None:
    with os.scandir(other) as entries:
        found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    for name, is_folder in found:
        path = other / name
        try:
            if not ID.fullmatch(name):
                if is_folder and name[0] != "." and stat_files(str(path)):
                    raise BadRun("it is not named by the id of a run")
            elif not is_folder:
                raise BadRun("it is not a folder")
            elif is_locked(path):
                merged.busy.append(name)
            else:
                getattr(merged, _merge_run(path, store)).append(name)
        except BadRun as bad:
            merged.refused.append(f"{printable(str(path))}: {bad}")
        except PermissionError as error:
            if Path(error.filename or path).is_relative_to(store):
                raise
            merged.refused.append(f"{printable(str(path))}: {error.strerror}")


def _merge_run(path: Path, store: Path) -> str:
    """Take the run in `path` if it is new or further; the field of Merged that it belongs to."""
    theirs = _Run(path)
    if theirs.final is None and theirs.saved < 0:
        return "unsaved"
    ours = store / path.name
    if not os.path.lexists(ours):
        with _copied(path, store) as copy:
            os.rename(copy, ours)
        sync_folder(store)
        return "new"
    lock = FileLock(ours / ".lock")
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        return "busy"
    with lock:
        if not stat_files(str(ours)):  # opened once and left
            taken = "new"
        elif theirs.goes_on_from(_ours(ours)):
            taken = "further"
        else:
            return "here"
        with _copied(path, store) as copy:
            _replace(ours, copy)
    return taken


class _Run:
    """How far a run is, for comparison; raises BadRun for a folder that is none."""

    def __init__(self, path: Path) -> None:
        names = set(stat_files(str(path)))
        found = contract.examine(path, names)
        self.final, self.data = found["final"], found["meta"].get("data")
        logged = "epochs.jsonl" in names
        self.epochs = [_timeless(epoch) for epoch in contract.read_epochs(path)] if logged else []
        self.saved = found["status"].get("saved", 0) if "last.pt" in names else -1

    def goes_on_from(self, ours: "_Run") -> bool:
        """Whether it is the same run, further; raises BadRun where the two are not the same."""
        if self.data and ours.data and self.data != ours.data:
            raise BadRun("it was trained on other data than the run here; both are left as they are")
        shorter = min(len(self.epochs), len(ours.epochs))
        if self.epochs[:shorter] != ours.epochs[:shorter]:
            raise BadRun("its epochs are not those of the run here; both are left as they are")
        if self.final is not None and ours.final is not None:
            if _timeless(self.final) != _timeless(ours.final):
                raise BadRun("it ended with other metrics than the run here; both are left as they are")
            return False
        if self.final is None and ours.final is None:
            return (len(self.epochs), self.saved) > (len(ours.epochs), ours.saved)
        further, other = (self, ours) if self.final is not None else (ours, self)
        if len(other.epochs) > len(further.epochs):
            raise BadRun("it and the run here end at different epochs; both are left as they are")
        return further is self


def _ours(path: Path) -> _Run:
    try:
        return _Run(path)
    except BadRun as bad:
        raise BadRun(f"the run here is damaged ({bad}); both are left as they are") from None


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "seconds"}


@contextmanager
def _copied(path: Path, store: Path) -> Iterator[Path]:
    """A checked copy of a run folder beside the runs of `store`, on its disk; gone after the block if still there."""
    beside = Path(tempfile.mkdtemp(prefix=".merge-", dir=store))
    try:
        yield _copy(path, beside / path.name)
    finally:
        shutil.rmtree(beside)


def _copy(path: Path, copy: Path) -> Path:
    copy.mkdir()
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for name in contract.MOST_BYTES.keys() & set(os.listdir(folder)):
            _copy_file(name, folder, copy / name)
    finally:
        os.close(folder)
    names = set(stat_files(str(copy)))
    found = contract.examine(copy, names)
    if "last.pt" in names and (damage := find_damage(copy / "last.pt")):
        raise BadRun(f"last.pt is damaged ({damage})")
    if found["final"] is None and "last.pt" not in names:
        raise BadRun("it changed while it was copied")
    sync_folder(copy)
    return copy


def _copy_file(name: str, folder: int, to: Path) -> None:
    try:
        with open_regular(name, contract.MOST_BYTES[name], folder) as source, open(to, "xb") as out:
            left = contract.MOST_BYTES[name]
            while chunk := source.read(min(2**20, left)):  # no more than that, should the file grow meanwhile
                out.write(chunk)
                left -= len(chunk)
            out.flush()
            os.fsync(out.fileno())
    except Damaged as damage:
        raise BadRun(f"{name} {damage}") from None


def _replace(ours: Path, copy: Path) -> None:
    """Put the files of `copy` into a folder of ours, which is locked; cut short, merging again ends it."""
    for name in ("last.pt", "last.pt.prev"):  # of a run less far, whose logs are others
        (ours / name).unlink(missing_ok=True)
    for entry in ours.glob("*.corrupt"):
        entry.unlink()
    for name in ORDER:
        if (copy / name).exists():
            os.replace(copy / name, ours / name)
    sync_folder(ours)
