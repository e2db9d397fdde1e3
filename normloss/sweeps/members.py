"""A sweep or queue: each member in a process of its own, so that one that is killed or fails takes no other along."""

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omegaconf import open_dict

from normloss.config import Config, check
from normloss.errors import Interrupted, UserError
from normloss.runs.files import read_json
from normloss.runs.provenance import cores
from normloss.runs.records import is_done, load_runs
from normloss.signals import SIGNALS, leave_closed_terminal
from normloss.sweeps import processes
from normloss.sweeps.budget import Budget, arrange, outlook
from normloss.sweeps.composing import Composed, passed_on
from normloss.sweeps.processes import Process
from normloss.training import gpus

OUTCOMES = {
    0: "done",
    1: "failed: a defect",
    2: "refused: wrong config or missing data",
    3: "diverged",
    4: "another process has it",
    75: "stopped: start again to go on",
}


@dataclass(frozen=True)
class Line:
    """Runs that are trained one after the other: a sweep is one line, a queue has several."""

    runs: list[Composed]
    more: Callable[[], list[Composed]] | None = None  # the runs as they are known whenever one of them has ended


@dataclass
class Member:
    """One run of the sweep and what became of it."""

    overrides: list[str]
    cfg: Config
    line: int = 0  # of the queue
    outcome: str = "not started"
    status: int | None = None
    gpu: str | None = None  # of several, the one it trains on


def run_members(lines: list[Line], jobs: int | None = None) -> int:
    """Train what is missing, `jobs` processes at a time; print what happened to each run; the worst exit status.

    jobs: None for one process for each GPU, one in all without. Of several GPUs each member sees one.

    Every member's config is checked before the first one starts. Lines come one after the other; within a line what is
    nearly finished comes first, then one seed of every cell before the next. Signals go on to the members, which save
    and leave. With a budget (budget_minutes, of the whole sweep) all leave in time.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"hydra.launcher.jobs: must be a whole number of at least 1, got {jobs}")
    began = time.time()
    members = plan(lines)
    waiting = in_order([member for member in members if member.status is None])
    choosers = [member for member in waiting if member.cfg.device in ("auto", "cuda")]
    devices = gpus.visible() if choosers else []
    jobs = jobs or max(1, len(devices))
    print(f"sweep of {len(members)} runs, {len(members) - len(waiting)} done before", flush=True)
    minutes = members[0].cfg.budget_minutes
    budget = Budget(minutes, began) if minutes and waiting else None
    store = Path(members[0].cfg.store)
    if budget:
        expected = outlook([member.cfg for member in waiting], jobs, budget.left, load_runs(store))
        print(f"budget of {minutes:g} minutes: {expected}", flush=True)
    if waiting:
        _train(lines, members, waiting, jobs, devices, budget)
    print(report(members), flush=True)
    if budget:
        left = [member.cfg for member in members if member.status != 0]
        spent = (time.time() - began) / 60
        print(f"after {spent:.1f} of {minutes:g} minutes: {outlook(left, jobs, 0, load_runs(store))}", flush=True)
    return worst(members)


def plan(lines: list[Line]) -> list[Member]:
    """The members, each run once, with those already done marked."""
    members: dict[str, Member] = {}
    for number, line in enumerate(lines):
        for overrides, raw in line.runs:
            with open_dict(raw):
                raw.pop("hydra", None)
            cfg = check(raw)
            members.setdefault(cfg.id, Member(overrides, cfg, number))
    for member in members.values():
        if is_done(folder(member)) and not member.cfg.restart:
            member.outcome, member.status = "done before", 0
    return list(members.values())


def in_order(members: list[Member]) -> list[Member]:
    """In which they are trained."""
    by_id = {member.cfg.id: member for member in members}
    ordered = (
        arrange([member.cfg for member in members if member.line == line])
        for line in sorted({member.line for member in members})
    )
    return [by_id[cfg.id] for line in ordered for cfg in line]


def _with_threads(cfg: Config, jobs: int) -> Config:
    """The cores are shared out among members that train at once."""
    return cfg.model_copy(update={"threads": max(1, cores() // jobs)}) if jobs > 1 and cfg.threads is None else cfg


def new_members(line: Line, number: int, members: list[Member]) -> list[Member]:
    """The members of a line that were not known before."""
    if line.more is None:
        return []
    known = {member.cfg.id for member in members}
    new = [member for member in plan([Line(line.more())]) if member.cfg.id not in known and member.status is None]
    for member in new:
        member.line = number
    return new


def _train(
    lines: list[Line],
    members: list[Member],
    waiting: list[Member],
    jobs: int,
    devices: list[str],
    budget: Budget | None,
) -> None:
    """All that wait, until a signal or the end of the budget; each member's end is noted in it."""
    running: list[tuple[Member, Process]] = []
    caught: list[int] = []
    waiting, stopping = list(waiting), False
    before = {number: signal.signal(number, lambda number, frame: caught.append(number)) for number in SIGNALS}
    try:
        processes.preload()
        while waiting or running:
            while caught:
                number = caught.pop(0)
                leave_closed_terminal()
                for _, process in running:
                    processes.send_signal(process, number)
                stopping = True
            if stopping or (budget and not budget.open):
                waiting.clear()
            while waiting and len(running) < jobs:
                member = waiting.pop(0)
                if member.cfg.device in ("auto", "cuda"):
                    member.gpu = gpus.least_used(devices, [other.gpu for other, _ in running])
                running.append((member, _start(member, members, len(waiting), jobs, budget)))
            time.sleep(0.05)
            ended = [(*pair, code) for pair in running if (code := pair[1].exitcode) is not None]
            for member, process, code in ended:
                running.remove((member, process))
                _finish(member, code)
                if new := new_members(lines[member.line], member.line, members):
                    members += new
                    waiting = in_order([*waiting, *new])
    except BaseException:
        for _, process in running:
            process.terminate()  # it saves and leaves
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def command(member: Member, jobs: int = 1) -> list[str]:
    """The words of the member as a run of its own: python train.py WORDS"""
    words = [*passed_on(sys.argv[1:]), *member.overrides, "hydra.mode=RUN"]
    threads = _with_threads(member.cfg, jobs).threads
    return words if threads == member.cfg.threads else [*words, f"threads={threads}"]


def _start(member: Member, members: list[Member], waiting: int, jobs: int, budget: Budget | None) -> Process:
    place: dict[str, float] = {"member": members.index(member) + 1, "members": len(members)}
    place |= {"waiting": waiting, "jobs": jobs, "pid": os.getpid()}
    if budget:
        place["deadline"] = budget.deadline
    script = str(Path(sys.argv[0]).resolve())
    environment = {"NORMLOSS_SWEEP": json.dumps(place)}
    if member.gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = member.gpu
    return processes.start_script(script, command(member, jobs), environment)


def _finish(member: Member, code: int) -> None:
    state = (read_json(folder(member) / "status.json") or {}).get("state")
    if code < 0 and state != "done":
        member.status, member.outcome = 1, f"killed by {signal.Signals(-code).name}: start again to go on"
    else:
        member.status = max(0, code)
        member.outcome = OUTCOMES.get(member.status, f"exit status {member.status}")


def folder(member: Member) -> Path:
    """Of its run."""
    return Path(member.cfg.store) / member.cfg.id


def worst(members: list[Member]) -> int:
    """A defect outweighs refused, diverged, locked, stopped, done, in this order."""
    statuses = {Interrupted.status if member.status is None else member.status for member in members}
    return next((status for status in (1, 2, 3, 4, 75) if status in statuses), max(statuses, default=0))


def report(members: list[Member]) -> str:
    """One line per member: id, label, what it was asked for beside the others, what became of it, its test error."""
    common = set.intersection(*(set(member.overrides) for member in members))
    rows = []
    for member in members:
        final = read_json(folder(member) / "DONE") if member.status == 0 else None
        error = f"test error {final['test_error']:.2f} %" if final else ""
        own = shlex.join(item for item in member.overrides if item not in common)
        rows.append((member.cfg.id, member.cfg.label, own, member.outcome, error))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    left = sum(member.status != 0 for member in members)
    total = f"{len(members) - left} of {len(members)} runs done"
    return "\n".join([*lines, f"{total}, the same command goes on" if left else total])
