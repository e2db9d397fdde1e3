"""The run store as its writer sees it: one folder per run, every write whole or checked.

    <store>/<id>/  config.yaml meta.json status.json epochs.jsonl steps.npz last.pt last.pt.prev DONE

A checkpoint is the truth about how far a run is: it records how long epochs.jsonl was, and resuming cuts the logs
back to it. DONE is written last. Two processes never share a run: the folder is locked while one has it.
"""

import errno
import hashlib
import io
import json
import os
import pickle
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from filelock import FileLock, Timeout

from normloss.config import Config
from normloss.errors import Diverged, Interrupted, Locked, UserError
from normloss.runs import contract, provenance
from normloss.runs.contract import BadRun
from normloss.runs.files import Damaged, find_damage, printable, read_json, write_json, write_whole
from normloss.runs.records import load_run, read_epochs
from normloss.runs.repair import repair

HEARTBEAT_SECONDS = 30
EPOCH_SECONDS = 30  # since the last checkpoint, at an epoch's end
NEW: dict[str, Any] = {"state": "new", "attempts": 0, "epoch": 0, "step": 0, "saved": 0}
STATE_OF: dict[type[BaseException], str] = {  # other exceptions: failed
    Interrupted: "incomplete",
    BrokenPipeError: "incomplete",  # nobody reads the output any more
    Diverged: "diverged",
}


class Run:
    """The folder of a run, locked by this process; `open_run` makes it."""

    def __init__(self, cfg: Config, lock: FileLock | None) -> None:
        self.id, self.path = cfg.id, Path(cfg.store) / cfg.id
        self.done = lock is None
        self._lock = lock
        self._beat = 0.0
        self._checkpoint_seconds = cfg.checkpoint_minutes * 60
        self._saved = time.monotonic()
        self._described = False
        self._labelled = hasattr(cfg.dataset, "label")
        self._ce: list[np.ndarray] = []  # cross entropies of the steps of finished epochs
        self.status = NEW | (read_json(self.path / "status.json") or {})
        self.before = dict(self.status)
        self.meta = read_json(self.path / "meta.json") or {"sessions": []}

    # one session of training ---------------------------------------------------------------------

    @contextmanager
    def session(self) -> Iterator[None]:
        """The run is ours within this block; how the block ends becomes its state."""
        assert self._lock is not None  # it is not done
        try:
            with _room_on_disk(self.id, self.path):
                self._set_state("running", attempts=self.status["attempts"] + 1)
                yield
        except UserError as error:
            if self.status["saved"] == self.before["saved"]:
                self._undo_start()
            else:  # asked for what could not go on
                self._leave("incomplete", error=_first_line(error))
            raise
        except BaseException as error:
            self._leave(STATE_OF.get(type(error), "failed"), error=_first_line(error))
            raise
        finally:
            self._lock.release()

    def _undo_start(self) -> None:
        """Refused before it trained: as if it had not been started."""
        if self.before["state"] == "new":
            shutil.rmtree(self.path)
        else:
            write_json(self.path / "status.json", self.before)

    def _leave(self, state: str, **facts: Any) -> None:
        try:
            self._close_session()
            self._set_state(state, **facts)
        except OSError as error:  # a full disk must not hide why the run ended
            print(f"run {self.id}: could not note its state {state!r} ({error.strerror})", flush=True)

    def _set_state(self, state: str, **facts: Any) -> None:
        self.status.pop("error", None)
        self.status.update(state=state, host=socket.gethostname(), pid=os.getpid(), heartbeat=now(), **facts)
        write_json(self.path / "status.json", self.status)
        self._beat = time.monotonic()

    def beat(self, epoch: int, step: int) -> None:
        """Note now and then in status.json that the run is alive and where it is."""
        if time.monotonic() - self._beat > HEARTBEAT_SECONDS:
            self._set_state("running", epoch=epoch, step=step)

    def describe(self, **facts: Any) -> None:
        """meta.json: where, with what and on what this session runs; earlier sessions stay in `sessions`."""
        session = {**provenance.facts(), **facts, "started": now(), "from_step": self.status["step"]}
        if self.status["step"] and (changed := _changes(self.meta, session)):
            session["changed"] = changed
            print(f"run {self.id}: goes on with another {', '.join(changed)}; its numbers depend on that", flush=True)
        self.meta = {**session, "sessions": [*self.meta["sessions"], session]}
        self.meta["started"] = self.meta["sessions"][0]["started"]
        # the run's seconds are those of a run alone only if it never shared its process
        self.meta["together"] = max(session.get("together", 1) for session in self.meta["sessions"])
        self._described = True
        write_json(self.path / "meta.json", self.meta)

    def note(self, **facts: Any) -> None:
        """Facts for meta.json that become known after `describe`."""
        self.meta.update(facts)
        self.meta["sessions"][-1].update(facts)
        write_json(self.path / "meta.json", self.meta)

    def unusable(self, thing: str) -> str | None:
        """Why an earlier session of the run noted that a thing, such as graph, cannot be used here."""
        notes = (session.get("unusable", {}).get(thing) for session in self.meta["sessions"])
        return next((reason for reason in notes if reason), None)

    def check_data(self, fingerprint: str) -> None:
        """Refuse to go on with other data than the run began with."""
        before = self.meta.get("data")
        if before and before != fingerprint and self.status["step"]:
            other = ", dataset.label=NAME makes a run of its own" if self._labelled else ""
            raise UserError(
                f"run {self.id}: its data changed since it began (fingerprint {before}, got {fingerprint});"
                f" restart=true trains anew{other}"
            )

    def _close_session(self) -> None:
        if not self._described:  # ended before it began to train: the sessions before it stay as they were
            return
        seconds = [record["seconds"] for record in read_epochs(self.path)]
        ended = {"ended": now(), "peak_memory_mb": provenance.peak_memory_mb()}
        self.meta.update(ended, seconds_per_epoch=float(np.mean(seconds)) if seconds else None)
        self.meta["sessions"][-1].update(ended)
        write_json(self.path / "meta.json", self.meta)

    # logs ----------------------------------------------------------------------------------------

    def log_epoch(self, record: dict[str, Any], ce: np.ndarray) -> None:
        """One line of epochs.jsonl, and the cross entropies of the epoch's steps."""
        with open(self.path / "epochs.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.log_steps(ce)

    def log_steps(self, ce: np.ndarray) -> None:
        self._ce.append(np.asarray(ce, np.float32))
        self._write_steps()

    def _write_steps(self) -> None:
        ces = np.concatenate(self._ce)
        buffer = io.BytesIO()
        np.savez(buffer, step=np.arange(1, len(ces) + 1), ce=ces)
        write_whole(self.path / "steps.npz", buffer.getbuffer())

    # checkpoints -----------------------------------------------------------------------------------

    @property
    def checkpoint_due(self) -> bool:
        return time.monotonic() - self._saved > self._checkpoint_seconds

    @property
    def checkpoint_due_after_epoch(self) -> bool:
        """Where the least has to be saved; epochs of a second or two need not each take another for it."""
        return time.monotonic() - self._saved > min(EPOCH_SECONDS, self._checkpoint_seconds)

    def save(self, state: dict[str, Any], epoch: int, step: int) -> None:
        """Write last.pt so that a kill at any instant leaves a whole one; the one before stays as last.pt.prev."""
        import torch

        log = self.path / "epochs.jsonl"
        state = {**state, "id": self.id, "epochs_bytes": log.stat().st_size if log.exists() else 0}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.write(hashlib.sha256(buffer.getvalue()).digest())  # torch.load does not mind what follows the archive
        last = self.path / "last.pt"
        write_whole(last, buffer.getbuffer(), keep=self.path / "last.pt.prev")
        self._saved = time.monotonic()
        self._set_state("running", epoch=epoch, step=step, saved=step)

    def load(self, device: Any, keys: Iterable[str] = ()) -> dict[str, Any] | None:
        """The newest whole checkpoint, with the logs cut back to it; None where there is none yet.

        keys: what it must hold. Raises UserError where no checkpoint is left, or the logs do not reach as far.
        """
        state = None
        for name in ("last.pt", "last.pt.prev"):
            file = self.path / name
            if not file.exists():
                continue
            try:
                state = self._read_checkpoint(file, device, {*keys, "logged_steps", "epochs_bytes"})
                break
            except Damaged as found:
                damage = found
            os.replace(file, file.with_name(f"{name}.corrupt"))
            print(f"run {self.id}: {name} is damaged ({damage}); trying the one before", flush=True)
        damaged = sorted(path.name for path in self.path.glob("*.corrupt"))
        if state is None and damaged:
            raise UserError(
                f"run {self.id}: no whole checkpoint is left ({' '.join(damaged)} in {self.path});"
                " restart=true trains anew"
            )
        if state is None and self.status.get("saved"):
            raise self._lost("last.pt")
        self._cut_logs(state)
        return state

    def _read_checkpoint(self, file: Path, device: Any, keys: set[str]) -> dict[str, Any]:
        import torch

        damage = find_damage(file)
        if damage is not None:
            raise Damaged(damage)
        try:
            state = torch.load(file, map_location=device, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:  # whole, but none of ours
            raise Damaged(printable(f"it is no checkpoint: {error}", 120)) from None
        owner = state.get("id", self.id)  # version 0.1.0 did not write it
        if owner != self.id:
            raise Damaged(f"it is run {owner}'s")
        if missing := keys - state.keys():
            raise Damaged(f"it holds no {' '.join(sorted(missing))}: weights alone, or written by another version")
        return state

    def _lost(self, name: str, how: str = "is gone or cut short") -> UserError:
        return UserError(f"run {self.id}: {self.path / name} {how}; restart=true trains anew")

    def _cut_logs(self, state: dict[str, Any] | None) -> None:
        log, steps = self.path / "epochs.jsonl", state["logged_steps"] if state else 0
        length = state["epochs_bytes"] if state else 0
        if length > (log.stat().st_size if log.exists() else 0):
            raise self._lost(log.name)
        if log.exists():
            os.truncate(log, length)
        name = log.name
        try:
            if log.exists():
                contract.read_epochs(self.path)
            name = "steps.npz"
            ce = contract.read_steps(self.path)[1] if steps else np.empty(0, np.float32)
        except Damaged as damage:
            raise self._lost(name, str(damage)) from None
        if len(ce) < steps:
            raise self._lost(name)
        self._ce = [ce[:steps]]
        if steps or (self.path / name).exists():
            self._write_steps()

    # the end ---------------------------------------------------------------------------------------

    def finish(self, final: dict[str, Any]) -> None:
        """DONE, written last, holds the final metrics."""
        records = read_epochs(self.path)
        final = {**final, "id": self.id, "seconds": sum(record["seconds"] for record in records)}
        (self.path / "last.pt.prev").unlink(missing_ok=True)
        self._close_session()
        self._set_state("done", epoch=final["epochs"], step=final["steps"])
        write_json(self.path / "DONE", final)
        self.done = True


def open_run(cfg: Config) -> Run:
    """The run of a config, locked for this process; `run.done` when there is nothing left to do.

    Raises UserError where the store cannot be written or a finished run has lost what cannot be made again, Locked
    while another process has the run, and Diverged for a run that diverged before.
    """
    path = Path(cfg.store) / cfg.id
    if _is_done(path) and not cfg.restart:
        return Run(cfg, lock=None)
    lock = _lock(path, cfg)
    try:
        with _room_on_disk(cfg.id, path):
            _prepare(path, cfg)
            done = _is_done(path)
    except BaseException:
        lock.release()
        raise
    if done:  # repaired, or ended by the process that had it until now
        lock.release()
    return Run(cfg, lock=None if done else lock)


def _is_done(path: Path) -> bool:
    try:
        return load_run(path).state == "done"
    except (BadRun, OSError):
        return False


def _prepare(path: Path, cfg: Config) -> None:
    if cfg.restart:
        _clear(path)
    text = yaml.safe_dump(cfg.stored(), sort_keys=False)
    if not any((path / name).exists() for name in contract.MOST_BYTES):
        write_whole(path / "config.yaml", text.encode())
    repair(path, text)
    if (read_json(path / "status.json") or {}).get("state") == "diverged":
        raise Diverged(f"run {cfg.id} ({cfg.label}) diverged before; restart=true trains it anew")


@contextmanager
def _room_on_disk(id: str, path: Path) -> Iterator[None]:
    """A full disk interrupts a run: what was saved is whole."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise Interrupted(
                f"run {id}: too few file handles ({error.strerror}); allow more (ulimit -n) and start it again to go on"
            ) from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Interrupted(
            f"run {id}: the disk of {path} is full; free some space and start it again to go on"
        ) from error


def _lock(path: Path, cfg: Config) -> FileLock:
    lock = FileLock(path / ".lock")
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0.5)  # a reader that looks whether the run is alive has it for a moment
    except Timeout:
        holder = read_json(path / "status.json") or {}
        raise Locked(
            f"run {cfg.id} ({cfg.label}) is being trained by another process"
            f" (host {holder.get('host', '?')}, pid {holder.get('pid', '?')}, last seen {holder.get('heartbeat', '?')})"
        ) from None
    except OSError as error:
        raise UserError(f"store: must be a folder that can be written, got {cfg.store} ({error.strerror})") from None
    return lock


def _clear(path: Path) -> None:
    # what says how far the run is goes first: cut short, this must leave nothing that looks whole
    for name in ("DONE", "last.pt", "last.pt.prev", "status.json"):
        (path / name).unlink(missing_ok=True)
    for entry in path.iterdir():
        if entry.name == ".lock":
            continue
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not as it was in the session before, of that which a run's numbers depend on: "torch 2.15.0 (2.14.0)"."""
    was, is_ = ({"torch": facts.get("versions", {}).get("torch"), **facts} for facts in (before, now))
    names = {"torch": "torch", "device": "device_name", "number of threads": "threads"}
    pairs = {name: (was.get(key), is_.get(key)) for name, key in names.items()}
    return [f"{name} {new} ({old})" for name, (old, new) in pairs.items() if old and new and old != new]


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
