"""A sweep: each member in a process of its own, so that a killed or failed one does not take the others along."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, open_dict

from normloss.config import CONFIGS, Config, check
from normloss.errors import Interrupted
from normloss.files import read_json
from normloss.provenance import cores
from normloss.signals import SIGNALS

OUTCOMES = {
    0: "done",
    1: "failed: a defect",
    2: "refused: wrong config or missing data",
    3: "diverged",
    4: "another process has it",
    75: "stopped: start again to go on",
}


@dataclass
class Member:
    """One run of the sweep and what became of it."""

    overrides: list[str]
    cfg: Config
    outcome: str = "not started"
    status: int | None = None
    process: subprocess.Popen | None = None


def run_members(composed: list[tuple[list[str], DictConfig]], jobs: int) -> int:
    """Train what is missing, `jobs` at a time; print what happened to each; the worst exit status.

    Every member's config is checked before the first one starts. Signals go on to the members, which save and leave.
    """
    members = plan(composed)
    done = [member for member in members if member.status == 0]
    print(f"sweep of {len(members)} runs, {len(done)} done before", flush=True)
    waiting = [member for member in members if member.status is None]
    running: list[Member] = []
    caught: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: caught.append(number)) for number in SIGNALS}
    try:
        while waiting or running:
            while caught:
                _forward(caught.pop(0), running)
                waiting.clear()
            while waiting and len(running) < jobs:
                member = waiting.pop(0)
                _start(member, members, len(waiting), jobs)
                running.append(member)
            time.sleep(0.1)
            for member in [member for member in running if member.process.poll() is not None]:
                running.remove(member)
                _finish(member)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print(report(members), flush=True)
    return worst(members)


def plan(composed: list[tuple[list[str], DictConfig]]) -> list[Member]:
    """The members, each run once, with those already done marked."""
    members: dict[str, Member] = {}
    for overrides, raw in composed:
        with open_dict(raw):
            raw.pop("hydra", None)
        cfg = check(raw)
        members.setdefault(cfg.id, Member(overrides, cfg))
    for member in members.values():
        if (Path(member.cfg.store) / member.cfg.id / "DONE").exists() and not member.cfg.restart:
            member.outcome, member.status = "done before", 0
    return list(members.values())


def expand(overrides: list[str]) -> list[Config]:
    """The configs of the runs that `python train.py OVERRIDES` trains, swept or not."""
    from hydra import compose, initialize_config_dir
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        # what the experiment sweeps comes first, so that the command line wins
        experiment = [override for override in overrides if override.startswith("experiment=")]
        hydra = compose("config", experiment, return_hydra_config=True).hydra if experiment else None
        params = (hydra and hydra.sweeper.params) or {}
        swept = [f"{key}={values}" for key, values in params.items()]
        parsed = OverridesParser.create().parse_overrides([*swept, *overrides])
        (members,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        return [check(compose("config", member)) for member in members]


def command(member: Member) -> list[str]:
    """The member as a run of its own."""
    return [sys.executable, str(Path(sys.argv[0]).resolve()), *member.overrides, "hydra.mode=RUN"]


def _start(member: Member, members: list[Member], waiting: int, jobs: int) -> None:
    arguments = command(member)
    if jobs > 1 and member.cfg.threads is None:
        arguments.append(f"threads={max(1, cores() // jobs)}")
    place = {"member": members.index(member) + 1, "members": len(members), "waiting": waiting, "jobs": jobs}
    place["pid"] = os.getpid()
    environment = {**os.environ, "NORMLOSS_SWEEP": json.dumps(place)}
    # blocked signals are inherited: one that comes while the member starts waits until it listens (StopRequest)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        # a session of its own: Ctrl-C reaches the member once, through us
        member.process = subprocess.Popen(arguments, env=environment, start_new_session=True)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _forward(number: int, running: list[Member]) -> None:
    for member in running:
        member.process.send_signal(number)


def _finish(member: Member) -> None:
    code = member.process.returncode
    if code < 0:
        member.status, member.outcome = 1, f"killed by {signal.Signals(-code).name}: start again to go on"
    else:
        member.status, member.outcome = code, OUTCOMES.get(code, f"exit status {code}")


def worst(members: list[Member]) -> int:
    """A defect outweighs refused, diverged, locked, stopped, done, in this order."""
    statuses = {Interrupted.status if member.status is None else member.status for member in members}
    return next((status for status in (1, 2, 3, 4, 75) if status in statuses), max(statuses, default=0))


def report(members: list[Member]) -> str:
    """A line a member: id, label, what it was asked for beside the others, what became of it, its test error."""
    common = set.intersection(*(set(member.overrides) for member in members))
    rows = []
    for member in members:
        final = read_json(Path(member.cfg.store) / member.cfg.id / "DONE") if member.status == 0 else None
        error = f"test error {final['test_error']:.2f} %" if final else ""
        own = shlex.join(item for item in member.overrides if item not in common)
        rows.append((member.cfg.id, member.cfg.label, own, member.outcome, error))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    left = sum(member.status != 0 for member in members)
    total = f"{len(members) - left} of {len(members)} runs done"
    return "\n".join([*lines, f"{total}, the same command goes on" if left else total])
