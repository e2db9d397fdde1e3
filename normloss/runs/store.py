"""The run store as its writer sees it: one folder per run, every write whole or checked.

    <store>/<id>/  config.yaml meta.json status.json epochs.jsonl steps.npz last.pt last.pt.prev DONE

A checkpoint is the truth about how far a run is: it records how long epochs.jsonl was, and resuming cuts the logs
back to it. DONE is written last. Two processes never share a run: the folder is locked while one has it.
"""

import errno
import json
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from filelock import FileLock, Timeout

from normloss.config import Config, trained_config
from normloss.errors import Diverged, Interrupted, Locked, UserError, first_line
from normloss.runs import checkpoint, provenance
from normloss.runs.files import Damaged, load_json, not_writable, read_json, write_arrays, write_json, write_whole
from normloss.runs.records import FILES, is_done, load_run, read_epochs, read_steps

HEARTBEAT_SECONDS = 30
EPOCH_SECONDS = 30  # since the last checkpoint, at an epoch's end
NEW: dict[str, Any] = {"state": "new", "attempts": 0, "epoch": 0, "step": 0, "saved": 0}
STATE_OF: dict[type[BaseException], str] = {  # other exceptions: failed
    Interrupted: "incomplete",
    UserError: "incomplete",  # it has trained, and was asked for what cannot be
    BrokenPipeError: "incomplete",  # nobody reads the output any more
    Diverged: "diverged",
}


class Run:
    """The folder of a run, locked by this process; `open_run` makes it."""

    def __init__(self, cfg: Config, lock: FileLock | None) -> None:
        self.id, self.path, self.cfg = cfg.id, Path(cfg.store) / cfg.id, cfg
        self.done = lock is None
        self.epochs: list[dict[str, Any]] = []  # what epochs.jsonl holds, once load() has cut it
        self._ce: list[np.ndarray] = []  # cross entropies of the steps of finished epochs
        self._lock = lock
        self._beat = 0.0
        self._saved = time.monotonic()
        self._described = False
        self.status = NEW | (read_json(self.path / "status.json") or {})
        self.before = dict(self.status)
        self.meta = read_json(self.path / "meta.json") or {"sessions": []}

    # one session of training ---------------------------------------------------------------------

    @contextmanager
    def session(self) -> Iterator[None]:
        """Hold the run within this block; how the block ends becomes its state."""
        assert self._lock is not None  # it is not done
        try:
            with _room_on_disk(self.id, self.path):
                self._set_state("running", attempts=self.status["attempts"] + 1)
                yield
        except BaseException as error:
            self._leave(error)
            raise
        finally:
            self._lock.release()

    def _leave(self, error: BaseException) -> None:
        """Note how the session ended; a run that could not start to train is left as it was before."""
        state = next((state for kind, state in STATE_OF.items() if isinstance(error, kind)), "failed")
        if isinstance(error, UserError) and self.status["saved"] == self.before["saved"]:
            if self.before["state"] == "new":
                shutil.rmtree(self.path)
            else:
                write_json(self.path / "status.json", self.before)
            return
        try:
            self._close_session()
            self._set_state(state, error=first_line(error))
        except OSError as failed:  # a full disk must not hide why the run ended
            print(f"run {self.id}: could not note its state {state!r} ({failed.strerror})", flush=True)

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
        """Write to meta.json where, with what and on what this session runs; earlier ones stay in `sessions`."""
        session = {**provenance.facts(), **facts, "started": now(), "from_step": self.status["step"]}
        if self.status["step"] and (changed := _changes(self.meta, session)):
            session["changed"] = changed
            print(f"run {self.id}: resumes with another {', '.join(changed)}; its numbers depend on that", flush=True)
        self.meta = {**session, "sessions": [*self.meta["sessions"], session]}
        self.meta["started"] = self.meta["sessions"][0]["started"]
        # the run's seconds are those of a run alone only if no session of it shared its machine
        shared = [session.get("at_once") for session in self.meta["sessions"]]  # versions before 0.3.0 did not note it
        self.meta["at_once"] = None if None in shared else max(shared)
        self._described = True
        write_json(self.path / "meta.json", self.meta)

    def note(self, **facts: Any) -> None:
        """Add facts to meta.json that become known after `describe`."""
        self.meta.update(facts)
        self.meta["sessions"][-1].update(facts)
        write_json(self.path / "meta.json", self.meta)

    def check_data(self, fingerprint: str) -> None:
        """Raise UserError where a run that has been trained on other data would resume."""
        before = self.meta.get("data")
        if before and before != fingerprint and self.status["step"]:
            labelled = hasattr(self.cfg.dataset, "label")
            other = ", dataset.label=NAME makes a run of its own" if labelled else ""
            old = self.meta["sessions"][0].get("versions", {}).get("normloss", "0.1.0")
            if labelled and old < "0.3.0":
                other += f"; normloss {old} read transparent and turned images, tif and gif in another way"
            raise UserError(
                f"run {self.id}: its data changed since it began (fingerprint {before}, got {fingerprint});"
                f" restart=true trains anew{other}"
            )

    def _close_session(self) -> None:
        if not self._described:  # ended before it began to train: the sessions before it stay as they were
            return
        seconds = [epoch["seconds"] for epoch in self.epochs]
        mean = float(np.mean(seconds)) if seconds else None
        self.note(ended=now(), peak_memory_mb=provenance.peak_memory_mb(), seconds_per_epoch=mean)

    # logs ----------------------------------------------------------------------------------------

    def log_epoch(self, record: dict[str, Any], ce: np.ndarray) -> None:
        """Append a line to epochs.jsonl, and the cross entropies of the epoch's steps (steps,) to steps.npz."""
        with open(self.path / "epochs.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.epochs.append(record)
        self.log_steps(ce)

    def log_steps(self, ce: np.ndarray) -> None:
        self._ce.append(np.asarray(ce, np.float32))
        ces = np.concatenate(self._ce)
        write_arrays(self.path / "steps.npz", {"step": np.arange(1, len(ces) + 1), "ce": ces})

    # checkpoints -----------------------------------------------------------------------------------

    @property
    def checkpoint_due(self) -> bool:
        return time.monotonic() - self._saved > self.cfg.checkpoint_minutes * 60

    @property
    def checkpoint_due_after_epoch(self) -> bool:
        """Whether to save at the end of an epoch, where a checkpoint is smallest, unless epochs take seconds."""
        return time.monotonic() - self._saved > min(EPOCH_SECONDS, self.cfg.checkpoint_minutes * 60)

    def save(self, state: dict[str, Any], epoch: int, step: int) -> None:
        """Write last.pt so that a kill at any instant leaves a whole one; the one before stays as last.pt.prev."""
        log = self.path / "epochs.jsonl"
        state = {**state, "id": self.id, "epochs_bytes": log.stat().st_size if log.exists() else 0}
        write_whole(self.path / "last.pt", checkpoint.pack(state), keep=self.path / "last.pt.prev")
        self._saved = time.monotonic()
        self._set_state("running", epoch=epoch, step=step, saved=step)

    def load(self, device: Any, keys: Iterable[str] = ()) -> dict[str, Any] | None:
        """Return the newest whole checkpoint, with the logs cut back to it; None where nothing was saved yet.

        keys: what it must hold. Raises UserError where no checkpoint is left, or the logs do not reach as far.
        """
        with _or_restart(self.id):
            state = self._load_checkpoint(device, {*keys, "logged_steps", "epochs_bytes"})
            self._cut_logs(state or {"epochs_bytes": 0, "logged_steps": 0})
        return state

    def _load_checkpoint(self, device: Any, keys: set[str]) -> dict[str, Any] | None:
        last, previous = self.path / "last.pt", self.path / "last.pt.prev"
        if not (last.exists() or previous.exists() or self.status["saved"]):
            return None
        try:
            return self._read_checkpoint(last, device, keys)
        except Damaged as damage:
            if not previous.exists():
                raise
            state = self._read_checkpoint(previous, device, keys)
            print(f"run {self.id}: {damage}; using the one before", flush=True)
        os.replace(previous, last)  # or the next save would keep the damaged one
        return state

    def _read_checkpoint(self, file: Path, device: Any, keys: set[str]) -> dict[str, Any]:
        state = checkpoint.load(file, device)
        owner = state.get("id", self.id)  # version 0.1.0 did not write it
        if owner != self.id:
            raise Damaged(file, f"is run {owner}'s")
        if missing := keys - state.keys():
            raise Damaged(file, f"holds no {' '.join(sorted(missing))}: only weights, or written by another version")
        return state

    def _cut_logs(self, state: Mapping[str, Any]) -> None:
        log, length, steps = self.path / "epochs.jsonl", state["epochs_bytes"], state["logged_steps"]
        if length > (log.stat().st_size if log.exists() else 0):
            raise Damaged(log, "is gone or cut short")
        if log.exists():
            os.truncate(log, length)
            self.epochs = read_epochs(self.path)
        ce = read_steps(self.path)[1] if steps else np.empty(0, np.float32)
        if len(ce) < steps:
            raise Damaged(self.path / "steps.npz", f"holds {len(ce)} of {steps} steps")
        if steps or (self.path / "steps.npz").exists():
            self.log_steps(ce[:steps])

    # the end ---------------------------------------------------------------------------------------

    def finish(self, final: dict[str, Any]) -> None:
        """Write DONE, last of all: the final metrics and what was trained, all that most readers need."""
        final = {**final, "id": self.id, "seconds": sum(epoch["seconds"] for epoch in self.epochs)}
        (self.path / "last.pt.prev").unlink(missing_ok=True)
        self._close_session()
        self._set_state("done", epoch=final["epochs"], step=final["steps"])
        write_json(self.path / "DONE", {**final, "config": trained_config(self.cfg.stored())})
        self.done = True


class NullRun(Run):
    """A run that writes nothing: what torchrun's processes other than the first train with."""

    done = checkpoint_due = checkpoint_due_after_epoch = False
    session = nullcontext  # type: ignore[assignment]

    def __init__(self, cfg: Config) -> None:
        self.id, self.path = cfg.id, Path(cfg.store) / cfg.id

    def nothing(self, *arguments: Any, **facts: Any) -> None:
        """Leave it to the first process."""

    describe = note = beat = check_data = log_epoch = log_steps = save = finish = nothing


def open_run(cfg: Config) -> Run:
    """Return the run of a config, locked for this process; `run.done` when there is nothing left to do.

    Raises UserError where the store cannot be written or a file of the run is damaged, Locked while another process
    has the run, and Diverged for a run that diverged before.
    """
    path = Path(cfg.store) / cfg.id
    if is_done(path) and not cfg.restart:
        return Run(cfg, lock=None)
    lock = _lock(path, cfg)
    try:
        with _room_on_disk(cfg.id, path), _or_restart(cfg.id):
            _prepare(path, cfg)
            state = load_run(path).state
        if state == "diverged":
            raise Diverged(f"run {cfg.id} ({cfg.label}) diverged before; restart=true trains it anew")
    except BaseException:
        lock.release()
        raise
    if state == "done":  # ended by the process that had it until now
        lock.release()
    return Run(cfg, lock=None if state == "done" else lock)


def _prepare(path: Path, cfg: Config) -> None:
    """Leave a folder that can be trained in; raises Damaged where one of its small files cannot be read."""
    if cfg.restart:  # what says how far the run is goes first: cut short, this must leave nothing that looks whole
        for name in ("DONE", "last.pt", "last.pt.prev", "status.json"):
            (path / name).unlink(missing_ok=True)
        for entry in path.iterdir():
            if entry.name != ".lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for partial in path.glob(".*.partial"):  # of a write that was killed
        partial.unlink()
    there = {name for name in FILES if (path / name).exists()}
    if not there:
        write_whole(path / "config.yaml", yaml.safe_dump(cfg.stored(), sort_keys=False).encode())
    for name in {"status.json", "meta.json"} & (there if "last.pt" not in there else set(FILES)):
        load_json(path / name)


@contextmanager
def _or_restart(id: str) -> Iterator[None]:
    """Within this block a damaged file ends the run with the advice to train it anew."""
    try:
        yield
    except Damaged as damage:
        raise UserError(f"run {id}: {damage}; restart=true trains anew") from None


@contextmanager
def _room_on_disk(id: str, path: Path) -> Iterator[None]:
    """Within this block a full disk or too few file handles interrupt the run: what was saved is whole."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE):
            raise
        raise Interrupted(f"run {id}: {error.strerror} in {path}; make room and rerun the command to resume") from error


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
        raise not_writable("store", path, error) from None
    return lock


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what a run's numbers depend on and is not as in the session before: "torch 2.15.0 (2.14.0)"."""
    was, is_ = ({"torch": facts.get("versions", {}).get("torch"), **facts} for facts in (before, now))
    names = {"torch": "torch", "device": "device_name", "number of threads": "threads"}
    pairs = {name: (was.get(key), is_.get(key)) for name, key in names.items()}
    return [f"{name} {new} ({old})" for name, (old, new) in pairs.items() if old and new and old != new]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
