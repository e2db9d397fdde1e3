"""A sweep or queue on this machine: each run in a process of its own, so that a failure or kill stops no other."""

import json
import os
import shlex
import signal
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from normloss.config import Config, labels
from normloss.errors import Interrupted, exit_status
from normloss.runs.files import read_json
from normloss.runs.provenance import cores
from normloss.runs.records import RunRecord, is_done, load_runs
from normloss.signals import StopRequest
from normloss.sweeps import processes
from normloss.sweeps.command_line import Entry
from normloss.sweeps.processes import Process
from normloss.training import gpus
from normloss.training.durations import Durations, share_done, spell
from normloss.training.run import deadline, train

LEAST_SECONDS = 20.0  # of a budget; a run is not started for less: it would read its data and leave
ANY_GPU = ("auto", "cuda")  # devices of runs that take whatever GPU there is
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
    again: bool = True  # whether the same command would train it again if it is not done: not a trial that diverged
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
    """Return members in the order of training: entry by entry; in an entry nearly finished ones, then seed by seed."""
    seeds: Counter[tuple[int, str]] = Counter()
    order = {}
    for member in members:
        setting = member.entry, member.cfg.setting_id
        order[member.cfg.id] = member.entry, -share_done(member.cfg), seeds[setting]  # its first seed, its second, ...
        seeds[setting] += 1
    return sorted(members, key=lambda member: order[member.cfg.id])


def train_here(entries: list[Entry], jobs: int | None) -> int:
    """Train what is missing, `jobs` processes at once, print what became of each run, return the worst exit status.

    jobs: None for one process per GPU, one in all without GPUs. With budget_minutes, of the whole sweep, all leave in
    time.
    """
    began, sweep = time.time(), Sweep(entries, jobs)
    members = sweep.members
    print(f"sweep of {len(members)} runs, {len(members) - len(sweep.waiting)} done before", flush=True)
    if sweep.waiting:
        sweep.train()
    print(report(members), flush=True)
    if sweep.deadline:
        cfg, left = members[0].cfg, [member.cfg for member in members if member.status != 0]
        hours = outlook(left, sweep.jobs, load_runs(cfg.store))
        print(f"after {(time.time() - began) / 60:.1f} of {cfg.budget_minutes:g} minutes; left: {hours}", flush=True)
    return worst(members)


class Sweep:
    """The runs of some entries on this machine. Of several GPUs each run sees one."""

    def __init__(self, entries: list[Entry], jobs: int | None) -> None:
        self.entries = entries
        self.members = members_of(entries)
        self.waiting = in_order([member for member in self.members if member.status is None])
        self.running: list[tuple[Member, Process]] = []
        self.devices = gpus.visible() if any(member.cfg.device in ANY_GPU for member in self.waiting) else []
        self.jobs = jobs or max(1, len(self.devices))
        self.deadline = deadline(self.members[0].cfg) if self.waiting else None

    def train(self) -> None:
        """Train all that wait until the end of the budget or a signal, which is passed on; note how each run ended."""
        stop = StopRequest().listen()
        with stop.noted(every=True):
            processes.preload(self.members[0].cfg.store)
            while self.waiting or self.running:
                while stop.received:
                    number = stop.received.pop(0)
                    for _, process in self.running:
                        os.kill(process.ident or 0, number)
                if stop or (self.deadline and self.deadline - time.time() <= LEAST_SECONDS):
                    self.waiting.clear()
                while self.waiting and len(self.running) < self.jobs:
                    self.start(self.waiting.pop(0))
                time.sleep(0.05)
                for member, process in [pair for pair in self.running if pair[1].exitcode is not None]:
                    self.running.remove((member, process))
                    member.end(process.exitcode or 0)
                    self.list_again(member)

    def start(self, member: Member) -> None:
        """Start a run's process."""
        place = {
            "member": self.members.index(member) + 1,
            "members": len(self.members),
            "waiting": len(self.waiting),
            "jobs": self.jobs,
            "label": labels_of(self.members)[member.cfg.id],
        }
        environment = {"NORMLOSS_SWEEP": json.dumps(place)}  # for training/progress.py
        if member.cfg.device in ANY_GPU and len(self.devices) > 1:  # the GPU that fewest runs have
            member.gpu = min(self.devices, key=[other.gpu for other, _ in self.running].count)
            environment["CUDA_VISIBLE_DEVICES"] = member.gpu
        cfg = with_threads(member.cfg, self.jobs)
        work = partial(train_member, cfg, member.words, self.jobs, os.getpid(), self.deadline)
        self.running.append((member, processes.start(work, environment)))

    def list_again(self, ended: Member) -> None:
        """Add the runs that the entry of a run that has ended has by now."""
        runs, known = self.entries[ended.entry](), {member.cfg.id for member in self.members}
        ended.again = ended.cfg.id in {run.cfg.id for run in runs}
        new = [Member(*run, ended.entry) for run in runs if run.cfg.id not in known]
        self.members += new
        self.waiting = in_order([*self.waiting, *(member for member in new if member.status is None)])


def train_member(cfg: Config, words: list[str], jobs: int, parent: int, deadline: float | None = None) -> int:
    """Train one of `jobs` runs at once, in a process of a sweep or of a SLURM job; return its exit status."""
    stop = StopRequest(deadline, parent).listen()
    return exit_status(lambda: train(cfg, stop, {"words": shlex.join(words), "at_once": jobs}))


def with_threads(cfg: Config, jobs: int, count: int | None = None) -> Config:
    """Return the config of one of `jobs` runs that share `count` cores (None: those of this process)."""
    if cfg.threads is not None or (jobs == 1 and count is None):
        return cfg
    return cfg.model_copy(update={"threads": max(1, (count or cores()) // jobs)})


def outlook(configs: Sequence[Config], jobs: int, runs: Iterable[RunRecord]) -> str:
    """Return how long runs take to their end, `jobs` at a time, by the finished ones of `runs` that are like them."""
    times = Durations(runs)
    known = [estimate.left(share_done(cfg)) for cfg in configs if (estimate := times.estimate(cfg))]
    if configs and not known:
        return "unknown"
    left = spell(sum(known) / jobs)
    if unknown := len(configs) - len(known):
        left += f", and {labels.counted(unknown, 'run')} without an estimate (no similar run has finished)"
    return left


# what became of it -------------------------------------------------------------------------------


def worst(members: list[Member]) -> int:
    """Return the status of the sweep: the first of internal error, rejected, diverged, locked, stopped, done.

    A trial that diverged is an answer.
    """
    left = [member for member in members if member.status != 3 or member.again]
    statuses = {Interrupted.status if member.status is None else member.status for member in left}
    return next((status for status in (1, 2, 3, 4, 75) if status in statuses), max(statuses, default=0))


def labels_of(members: Sequence[Member]) -> dict[str, str]:
    """Return by id the labels that tell the members of a sweep from each other."""
    names = labels.distinct([member.cfg.stored() for member in members])
    return {member.cfg.id: name for member, name in zip(members, names, strict=True)}


def report(members: list[Member]) -> str:
    """Return one line per member: id, label, what became of it, its test error; and the total."""
    names, rows = labels_of(members), []
    for member in members:
        final = read_json(member.folder / "DONE") if member.status == 0 else None
        error = f"test error {final['test_error']:.2f} %" if final else ""
        rows.append((member.cfg.id, names[member.cfg.id], member.outcome, error))
    return f"{aligned(rows)}\n{total(members)}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as lines of a table without rules."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def total(members: list[Member]) -> str:
    """Return how many are done, and what brings the others further."""
    done = [member for member in members if member.status == 0]
    diverged = [member for member in members if member.status == 3]
    line = f"{len(done)} of {len(members)} runs done"
    if diverged:
        line += f"; {len(diverged)} diverged"
        line += " and would again: change train.lr or reg.lam" if diverged[0].again else ", not tried again"
    return line + ("; rerun the command to resume" if {None, 1, 4, 75} & {each.status for each in members} else "")
