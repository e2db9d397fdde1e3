"""A sweep or queue on this machine: each run in a process of its own, so that a failure or kill stops no other."""

import json
import os
import shlex
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from normloss.config import Config, labels
from normloss.errors import Interrupted, exit_status
from normloss.runs.files import read_json
from normloss.runs.provenance import cores
from normloss.runs.records import is_done, load_runs
from normloss.signals import StopRequest
from normloss.sweeps import processes
from normloss.sweeps.budget import Budget, arrange, outlook
from normloss.sweeps.composing import Planned
from normloss.sweeps.processes import Process
from normloss.training import gpus
from normloss.training.run import train

Entry = Callable[[], list[Planned]]  # of a queue: its runs as far as they are known; called anew when one has ended

OUTCOMES = {
    0: "done",
    1: "failed: an internal error",
    2: "rejected: wrong config or missing data",
    3: "diverged",
    4: "another process has it",
    75: "stopped: rerun to resume",
}


@dataclass
class Member:
    """One run of a sweep and what became of it."""

    cfg: Config
    words: list[str]
    entry: int = 0  # of the queue
    outcome: str = "not started"
    status: int | None = None  # exit status; 0 if and only if its DONE is there
    gpu: str | None = None  # of several, the one it trains on
    old_done: int | None = field(init=False)  # when the DONE was written that restart=true does not count

    def __post_init__(self) -> None:
        self.old_done = self._written() if self.cfg.restart else None
        if self.is_done:
            self.outcome, self.status = "done before", 0

    @property
    def folder(self) -> Path:
        return Path(self.cfg.store) / self.cfg.id

    @property
    def is_done(self) -> bool:
        return is_done(self.folder) and self._written() != self.old_done

    def _written(self) -> int | None:
        file = self.folder / "DONE"
        return file.stat().st_mtime_ns if file.exists() else None

    def end(self, code: int) -> None:
        """Note how its process ended; code: the exit status, or minus the signal that killed it."""
        if self.is_done:
            self.status, self.outcome = 0, OUTCOMES[0]
        elif code < 0:
            self.status, self.outcome = 1, f"killed by {signal.Signals(-code).name}: rerun to resume"
        else:
            self.status = code or 1
            self.outcome = OUTCOMES.get(self.status, f"exit status {self.status}")


def members_of(entries: list[Entry]) -> list[Member]:
    """Return each run of the entries once, with those already done marked."""
    members: dict[str, Member] = {}
    for number, entry in enumerate(entries):
        for cfg, words in entry():
            members.setdefault(cfg.id, Member(cfg, words, number))
    return list(members.values())


def in_order(members: list[Member]) -> list[Member]:
    """Return members in the order of training: entry by entry, in an entry what is nearly finished first."""
    by_id = {member.cfg.id: member for member in members}
    entries = sorted({member.entry for member in members})
    ordered = (arrange([member.cfg for member in members if member.entry == entry]) for entry in entries)
    return [by_id[cfg.id] for entry in ordered for cfg in entry]


def train_here(entries: list[Entry], jobs: int | None) -> int:
    """Train what is missing, `jobs` processes at once, print what became of each run, return the worst exit status.

    jobs: None for one process per GPU, one in all without GPUs. Of several GPUs each member sees one. Signals are
    passed on to the members, which save and leave; with budget_minutes, of the whole sweep, all leave in time.
    """
    began = time.time()
    members = members_of(entries)
    waiting = in_order([member for member in members if member.status is None])
    devices = gpus.visible() if any(_chooses(member) for member in waiting) else []
    jobs = jobs or max(1, len(devices))
    print(f"sweep of {len(members)} runs, {len(members) - len(waiting)} done before", flush=True)
    minutes = members[0].cfg.budget_minutes
    budget = Budget(minutes, began) if minutes and waiting else None
    store = Path(members[0].cfg.store)
    if budget:
        expected = outlook([member.cfg for member in waiting], jobs, budget.left, load_runs(store))
        print(f"budget of {minutes:g} minutes: {expected}", flush=True)
    if waiting:
        _train_all(entries, members, waiting, jobs, devices, budget)
    print(report(members, again={run.cfg.id for entry in entries for run in entry()}), flush=True)
    if budget:
        left = [member.cfg for member in members if member.status != 0]
        spent = (time.time() - began) / 60
        print(f"after {spent:.1f} of {minutes:g} minutes: {outlook(left, jobs, 0, load_runs(store))}", flush=True)
    return worst(members)


def _train_all(
    entries: list[Entry],
    members: list[Member],
    waiting: list[Member],
    jobs: int,
    devices: list[str],
    budget: Budget | None,
) -> None:
    """Train all that wait until a signal or the end of the budget; note in each member how it ended."""
    running: list[tuple[Member, Process]] = []
    stop = StopRequest().listen()
    with stop.noted(every=True):
        processes.preload(members[0].cfg.store)
        while waiting or running:
            while stop.received:
                number = stop.received.pop(0)
                for _, process in running:
                    os.kill(process.ident or 0, number)
            if stop or (budget and not budget.open):
                waiting.clear()
            while waiting and len(running) < jobs:
                member = waiting.pop(0)
                if _chooses(member):
                    member.gpu = gpus.least_used(devices, [other.gpu for other, _ in running])
                place = {"member": members.index(member) + 1, "members": len(members), "waiting": len(waiting)}
                label = labels_of(members)[member.cfg.id]
                running.append((member, _start(member, place | {"jobs": jobs, "label": label}, budget)))
            time.sleep(0.05)
            for member, process in [pair for pair in running if pair[1].exitcode is not None]:
                running.remove((member, process))
                member.end(process.exitcode or 0)
                known = {member.cfg.id for member in members}
                new = [Member(*run, member.entry) for run in entries[member.entry]() if run.cfg.id not in known]
                members += new
                waiting = in_order([*waiting, *(member for member in new if member.status is None)])


def _start(member: Member, place: dict[str, Any], budget: Budget | None) -> Process:
    environment = {"NORMLOSS_SWEEP": json.dumps(place)}  # for training/progress.py
    if member.gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = member.gpu
    cfg, deadline = with_threads(member.cfg, place["jobs"]), budget.deadline if budget else None
    return processes.start(partial(train_member, cfg, member.words, place["jobs"], os.getpid(), deadline), environment)


def train_member(cfg: Config, words: list[str], jobs: int, parent: int, deadline: float | None = None) -> int:
    """Train one of `jobs` runs at once, in a process of a sweep or of a SLURM job; return its exit status."""
    stop = StopRequest(deadline, parent).listen()
    return exit_status(lambda: train(cfg, stop, {"words": shlex.join(words), "at_once": jobs}))


def with_threads(cfg: Config, jobs: int, count: int | None = None) -> Config:
    """Return the config of one of `jobs` runs that share `count` cores (None: those of this process)."""
    if cfg.threads is not None or (jobs == 1 and count is None):
        return cfg
    return cfg.model_copy(update={"threads": max(1, (count or cores()) // jobs)})


def _chooses(member: Member) -> bool:
    """Return whether a run takes whatever GPU there is."""
    return member.cfg.device in ("auto", "cuda")


# what became of it -------------------------------------------------------------------------------


def worst(members: list[Member]) -> int:
    """Return the status of the sweep: a defect outweighs rejected, diverged, locked, stopped, done, in this order."""
    statuses = {Interrupted.status if member.status is None else member.status for member in members}
    return next((status for status in (1, 2, 3, 4, 75) if status in statuses), max(statuses, default=0))


def labels_of(members: Sequence[Member]) -> dict[str, str]:
    """Return by id the labels that tell the members of a sweep from each other."""
    names = labels.distinct([member.cfg.stored() for member in members])
    return {member.cfg.id: name for member, name in zip(members, names, strict=True)}


def report(members: list[Member], again: set[str] | None = None) -> str:
    """Return one line per member: id, label, what became of it, its test error; and the total.

    again: ids of the runs that the same command would train if they are not done; None: all.
    """
    names, rows = labels_of(members), []
    for member in members:
        final = read_json(member.folder / "DONE") if member.status == 0 else None
        error = f"test error {final['test_error']:.2f} %" if final else ""
        rows.append((member.cfg.id, names[member.cfg.id], member.outcome, error))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, total(members, again)])


def total(members: list[Member], again: set[str] | None = None) -> str:
    """Return how many are done, and what brings the others further; again: as for `report`."""
    done = [member for member in members if member.status == 0]
    diverged = [member for member in members if member.status == 3]
    settled = [member for member in diverged if again is not None and member.cfg.id not in again]
    line = f"{len(done)} of {len(members)} runs done"
    if settled:  # trials of tuning, whose end is an answer
        line += f"; {len(settled)} diverged and {'is' if len(settled) == 1 else 'are'} not tried again"
    elif diverged:
        keys = "train.lr or reg.lam" if any(member.cfg.reg.lam for member in diverged) else "train.lr"
        which = "all" if len(diverged) == len(members) else f"{len(diverged)}"
        line += f"; {which} diverged and the same command would diverge again: change {keys}"
    return line + ("; rerun the command to resume" if len(done) + len(diverged) < len(members) else "")
