"""Runs in a few files that travel between machines: finished ones' records, unfinished ones' checkpoints.

A bundle is window-1.zip, window-2.zip, ... of one export. manifest.json in each names every run of the bundle with the
size and SHA-256 of its files; a file larger than a part goes into several.
"""

import hashlib
import io
import json
import shutil
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from normloss.errors import UserError
from normloss.runs.files import find_damage, read_json, write_whole
from normloss.runs.records import is_locked

MANIFEST = "manifest.json"
RECORD = ("config.yaml", "meta.json", "epochs.jsonl", "steps.npz", "status.json")
LAST = ("last.pt", "status.json", "DONE")  # written in this order: what says how far a run is comes after what it says


@dataclass
class Exported:
    """What an export took and what it left out."""

    finished: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    too_large: list[str] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)  # being trained
    paths: list[Path] = field(default_factory=list)


def export(store: Path, out: Path, files: int, file_bytes: int) -> Exported:
    """Bundle the runs of a store into at most `files` files of about `file_bytes` each, finished runs first.

    Among unfinished runs those come first that are nearest their end; one whose files no longer fit is left out.
    """
    room, done = files * file_bytes, Exported()
    contents: dict[str, dict[str, bytes]] = {}
    for run in sorted((path.parent for path in store.glob("*/config.yaml")), key=_by_progress):
        finished = (run / "DONE").exists()
        if not finished and is_locked(run):
            done.busy.append(run.name)
            continue
        names = (*RECORD, "DONE") if finished else (*RECORD, "last.pt")
        if not finished and find_damage(run / "last.pt") is not None:
            continue  # nothing saved yet, or nothing whole
        taken = {name: (run / name).read_bytes() for name in names if (run / name).exists()}
        size = sum(map(len, taken.values()))
        if size > room:
            done.too_large.append(run.name)
            continue
        room -= size
        contents[run.name] = taken
        (done.finished if finished else done.unfinished).append(run.name)
    done.paths = _write_parts(contents, out, file_bytes)
    return done


def _by_progress(run: Path) -> tuple:
    status = read_json(run / "status.json") or {}
    return not (run / "DONE").exists(), -status.get("epoch", 0), run.name


def _write_parts(contents: dict[str, dict[str, bytes]], out: Path, file_bytes: int) -> list[Path]:
    manifest = {
        run: {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in taken.items()}
        for run, taken in contents.items()
    }
    parts: list[list[tuple[str, bytes]]] = [[]]
    room = file_bytes
    for run, taken in contents.items():
        for name, data in taken.items():
            for piece, start in enumerate(range(0, max(len(data), 1), file_bytes)):
                chunk = data[start : start + file_bytes]
                if len(chunk) > room and parts[-1]:
                    parts.append([])
                    room = file_bytes
                parts[-1].append((f"{run}/{name}.{piece:03d}", chunk))
                room -= len(chunk)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("window-*.zip"):  # of the export before: its parts would not fit these
        old.unlink()
    paths = [out / f"window-{i}.zip" for i in range(1, len(parts) + 1)]
    for path, part in zip(paths, parts, strict=True):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(MANIFEST, json.dumps(manifest))
            for name, data in part:
                archive.writestr(name, data)
        write_whole(path, buffer.getbuffer())
    return paths


@dataclass
class Imported:
    """What an import brought: the runs that are new or further than the store had them; the others stay."""

    brought: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)  # being trained here


def bring(folders: Iterable[Path], store: Path) -> Imported:
    """Bring bundles back into a store; a run is taken where it is further than the store's. Twice is once.

    Raises UserError for a bundle of which a part is missing or damaged: nothing of it is then taken.
    """
    done = Imported()
    for folder in folders:
        for run, taken in _read_parts(folder).items():
            path = store / run
            if _progress(path / "DONE", read_json(path / "status.json")) >= _progress_of(taken):
                done.kept.append(run)
                continue
            path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path / ".lock")
            try:
                lock.acquire(timeout=0.5)
            except Timeout:
                done.busy.append(run)
                continue
            with lock:
                _replace(path, taken)
            done.brought.append(run)
    return done


def _read_parts(folder: Path) -> dict[str, dict[str, bytes]]:
    paths = sorted(folder.glob("window-*.zip"))
    if not paths:
        raise UserError(f"{folder}: no window-*.zip, which scripts/export.py --window writes")
    manifest: dict[str, Any] | None = None
    pieces: dict[str, bytes] = {}
    for path in paths:
        try:
            with zipfile.ZipFile(path) as archive:
                theirs = json.loads(archive.read(MANIFEST))
                pieces |= {name: archive.read(name) for name in archive.namelist() if name != MANIFEST}
        except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{path}: damaged ({error}); fetch it again") from None
        if manifest is not None and theirs != manifest:
            raise UserError(f"{path}: is of another export than {paths[0].name}")
        manifest = theirs
    runs: dict[str, dict[str, bytes]] = {}
    for run, names in manifest.items():
        runs[run] = {}
        for name, fact in names.items():
            data = b"".join(pieces[key] for key in sorted(pieces) if key.rpartition(".")[0] == f"{run}/{name}")
            if len(data) != fact["bytes"] or hashlib.sha256(data).hexdigest() != fact["sha256"]:
                raise UserError(f"{folder}: {run}/{name} is not whole; a window-*.zip is missing or was changed")
            runs[run][name] = data
    return runs


def _progress(finished: Path, status: dict[str, Any] | None) -> float:
    return float("inf") if finished.exists() else (status or {}).get("saved", -1)


def _progress_of(taken: dict[str, bytes]) -> float:
    return float("inf") if "DONE" in taken else json.loads(taken["status.json"])["saved"]


def _replace(path: Path, taken: dict[str, bytes]) -> None:
    for name in ("last.pt", "last.pt.prev"):  # of a run less far: cut short, this leaves one that begins anew
        (path / name).unlink(missing_ok=True)
    for entry in path.glob("*.corrupt"):
        entry.unlink()
    shutil.rmtree(path / "wandb", ignore_errors=True)
    for name in sorted(taken, key=lambda name: LAST.index(name) if name in LAST else -1):
        write_whole(path / name, taken[name])
