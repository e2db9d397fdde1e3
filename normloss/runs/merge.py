"""Runs of other stores into this one: those that are new here or were trained further, each whole or not at all.

Only folders that are named by the id of their own config are taken, only the files of a run are read, and none through
a symbolic link.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from normloss.errors import UserError
from normloss.runs import checkpoint
from normloss.runs.files import read_bytes, read_json, write_whole
from normloss.runs.records import FILES, RunRecord, load_run, run_folders

OUTCOMES = (  # for a run
    "new",
    "further",  # than it was here
    "here",  # as far or further
    "unsaved",  # neither finished nor with a checkpoint to resume from
    "busy",  # being trained, there or here
    "refused",
)


def merge(stores: Iterable[Path], store: Path) -> dict[str, list[str]]:
    """Take runs of `stores` into `store`; return the ids by outcome, and a line for each that was rejected."""
    merged: dict[str, list[str]] = {outcome: [] for outcome in OUTCOMES}
    store.mkdir(parents=True, exist_ok=True)
    for other in stores:
        if other.samefile(store):
            raise UserError(f"{other}: is the store that its runs would go into")
        for path in run_folders(other):
            try:
                merged[_take(load_run(path), store)].append(path.name)
            except UserError as error:
                merged["refused"].append(str(error))
    return merged


def _take(theirs: RunRecord, store: Path) -> str:
    """Take a run if it is new or further; return what became of it."""
    ours = store / theirs.id
    if theirs.state == "running":
        return "busy"
    if theirs.final is None and _saved(theirs) < 0:
        return "unsaved"
    content = {} if ours.exists() else _read(theirs)  # where it is damaged, nothing is made
    try:
        with FileLock(ours / ".lock", timeout=0.5):
            is_new = not any((ours / name).exists() for name in FILES)  # or opened once and left
            if not is_new and not _is_further(theirs, load_run(ours)):
                return "here"
            content = content or _read(theirs)
            for name in ("last.pt", "last.pt.prev"):  # of a run less far, whose logs are others
                (ours / name).unlink(missing_ok=True)
            for name in FILES:  # cut short, merging again ends it
                if name in content:
                    write_whole(ours / name, content[name])
            return "new" if is_new else "further"
    except Timeout:
        return "busy"


def _is_further(theirs: RunRecord, ours: RunRecord) -> bool:
    """Return whether theirs is our run, trained further; raises UserError where the two are not the same run."""
    shorter = min(len(theirs.epochs), len(ours.epochs))
    if len({run.meta.get("data") for run in (theirs, ours)} - {None}) > 1:
        why = "was trained on other data than"
    elif _timeless(theirs.epochs[:shorter]) != _timeless(ours.epochs[:shorter]):
        why = "has other epochs than"
    elif theirs.final and ours.final and _timeless([theirs.final]) != _timeless([ours.final]):
        why = "ended with other metrics than"
    else:
        return _how_far(theirs) > _how_far(ours)
    raise UserError(f"{theirs.path} {why} the run here; both are left as they are")


def _how_far(run: RunRecord) -> tuple[int, ...]:
    return (1,) if run.final else (0, len(run.epochs), _saved(run))


def _saved(run: RunRecord) -> int:
    """Return the step that a run's checkpoint was written at, -1 where it has none."""
    there = (run.path / "last.pt").exists()
    return (read_json(run.path / "status.json") or {}).get("saved", 0) if there else -1


def _timeless(records: list[Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def _read(run: RunRecord) -> dict[str, bytes]:
    """Return the content of each file of a run; raises Damaged where one cannot be what it should be."""
    _ = run.meta, run.epochs, run.steps()
    content = {}
    for name in reversed(FILES):  # should the run be trained meanwhile, its logs are longer than its checkpoint says
        file = run.path / name
        if os.path.lexists(file):
            content[name] = checkpoint.read_whole(file) if name == "last.pt" else read_bytes(file)
    return content
