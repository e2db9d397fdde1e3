"""A run folder of which a file is gone or damaged, made fit to go on, in words; or refused where that cannot be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from normloss.errors import UserError
from normloss.runs import contract
from normloss.runs.files import Damaged, write_json, write_whole


def repair(path: Path, config: str) -> None:
    """Write again what follows from the config and the checkpoint; the folder is locked by this process.

    config: what config.yaml holds. Raises UserError for a finished run without its logs: only training makes them.
    """
    id = path.name
    done = _fault(path, "DONE", lambda: contract.read_done(path, id))
    if done:
        (path / "DONE").unlink()
        _say(id, f"DONE {done}; it goes on from its checkpoint")
    if fault := _fault(path, "config.yaml", lambda: contract.read_config(path, id), needed=True):
        write_whole(path / "config.yaml", config.encode())
        _say(id, f"config.yaml {fault}; written again")
    finished, saved = (path / "DONE").exists(), (path / "last.pt").exists() or (path / "last.pt.prev").exists()
    begun = finished or saved or (path / "epochs.jsonl").exists()
    if fault := _fault(path, "status.json", lambda: contract.read_status(path), needed=begun):
        # saved: a checkpoint that is lost from here on is noticed
        status = {"state": "done" if finished else "incomplete", "attempts": 0, "epoch": 0, "step": 0}
        write_json(path / "status.json", status | {"saved": int(saved)})
        _say(id, f"status.json {fault}; written again")
    if fault := _fault(path, "meta.json", lambda: contract.read_meta(path), needed=begun):
        write_json(path / "meta.json", {"sessions": []})
        _say(id, f"meta.json {fault}; written again, without the sessions before and the images' fingerprint")
    if not finished:
        return  # what epochs.jsonl and steps.npz must hold follows from the checkpoint, which Run.load reads
    try:
        contract.examine(path, {entry.name for entry in path.iterdir()} & contract.MOST_BYTES.keys())
    except contract.BadRun as bad:
        raise UserError(f"run {id}: {path} is finished, but {bad}; restart=true trains anew") from None


def _fault(path: Path, name: str, read: Callable[[], Any], needed: bool = False) -> str | None:
    if not needed and not (path / name).exists():
        return None
    try:
        read()
    except Damaged as damage:
        return str(damage)
    return None


def _say(id: str, line: str) -> None:
    print(f"run {id}: {line}", flush=True)
