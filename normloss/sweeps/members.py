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

import yaml
from omegaconf import DictConfig, open_dict

from normloss.config import CONFIGS, Config, check
from normloss.errors import Interrupted, UserError
from normloss.runs.files import read_json
from normloss.runs.provenance import cores
from normloss.signals import SIGNALS
from normloss.sweeps.budget import Window, arrange, outlook
from normloss.sweeps.durations import Pace, measure_paces

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
    process: subprocess.Popen | None = None  # while it trains


def run_members(composed: list[tuple[list[str], DictConfig]], jobs: int) -> int:
    """Train what is missing, `jobs` processes at a time; print what happened to each run; the worst exit status.

    Every member's config is checked before the first one starts. Signals go on to the processes, which save and leave.
    With a budget (budget_minutes, of the whole sweep) what is nearly finished comes first, and all leave in time.
    """
    began = time.time()
    members = plan(composed)
    done = [member for member in members if member.status == 0]
    print(f"sweep of {len(members)} runs, {len(done)} done before", flush=True)
    waiting = [member for member in members if member.status is None]
    budget = members[0].cfg.budget_minutes
    window = Window(budget, began) if budget and waiting else None
    paces: dict[tuple, Pace] = {}
    if window:
        waiting, paces = _prepare(waiting, jobs, window)
    running: list[Member] = []
    caught: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: caught.append(number)) for number in SIGNALS}
    try:
        while waiting or running:
            while caught:
                number = caught.pop(0)
                for member in running:
                    member.process.send_signal(number)
                waiting.clear()
            if window and not window.open:
                waiting.clear()
            while waiting and len(running) < jobs:
                member = waiting.pop(0)
                _start(member, members, len(waiting), jobs, window)
                running.append(member)
            time.sleep(0.1)
            for member in [member for member in running if member.process.poll() is not None]:
                running.remove(member)
                _finish(member)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print(report(members), flush=True)
    if window:
        left = [member.cfg for member in members if member.status != 0]
        print(f"after {(time.time() - began) / 60:.1f} of {budget:g} minutes: {outlook(left, paces, jobs)}", flush=True)
    return worst(members)


def _prepare(waiting: list[Member], jobs: int, window: Window) -> tuple[list[Member], dict[tuple, Pace]]:
    """The members in the order of what is worth most in a window, and how fast they train here."""
    order = {cfg.id: i for i, cfg in enumerate(arrange([member.cfg for member in waiting]))}
    waiting = sorted(waiting, key=lambda member: order[member.cfg.id])
    configs = [member.cfg for member in waiting]
    paces = measure_paces(configs, window.deadline - time.time())
    seconds = window.deadline - time.time()
    print(f"budget of {window.minutes:g} minutes: {outlook(configs, paces, jobs, seconds)}", flush=True)
    return waiting, paces


def run_queue(words: list[str]) -> int:
    """`python train.py queue=FILE key=value ...`: the runs of every line of FILE, in its order, as one sweep."""
    file = Path(next(word.partition("=")[2] for word in words if word.startswith("queue=")))
    rest = [word for word in words if not word.startswith(("queue=", "hydra."))]
    composed = [member for line in read_queue(file) for member in compositions([*line, *rest])]
    return run_members(composed, launcher_jobs(words))


def launcher_jobs(words: list[str]) -> int:
    """hydra.launcher.jobs of a command line that Hydra does not read."""
    return next((int(word.partition("=")[2]) for word in words if word.startswith("hydra.launcher.jobs=")), 1)


def read_queue(file: Path) -> list[list[str]]:
    """A YAML list of lines such as "experiment=table1 model=resnet110"; UserError for anything else."""
    try:
        lines = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"queue: must be a YAML file, got {file} ({' '.join(str(error).split())})") from None
    if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
        raise UserError(f'queue: must hold a list of lines such as "experiment=table1 model=resnet110", got {file}')
    return [shlex.split(line) for line in lines]


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
    return [check(raw) for _, raw in compositions(overrides)]


def compositions(overrides: list[str]) -> list[tuple[list[str], DictConfig]]:
    """Each run's own overrides, and what Hydra composes of them."""
    from hydra import compose, initialize_config_dir
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        # what the experiment sweeps comes first, so that the command line wins
        experiment = [override for override in overrides if override.startswith("experiment=")]
        hydra = compose("config", experiment, return_hydra_config=True).hydra if experiment else None
        params = (hydra and hydra.sweeper.params) or {}
        swept = [f"{key}={values}" for key, values in params.items()]
        parser = OverridesParser.create()
        parsed = parser.parse_overrides([*swept, *overrides])
        (members,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        cells: dict[tuple[str, ...], DictConfig] = {}  # seeds share a composition: it takes Hydra 0.1 s and more
        composed = []
        for member in members:
            seeds = [word for word in member if word.startswith("seed=")]
            cell = tuple(word for word in member if word not in seeds)
            if cell not in cells:
                cells[cell] = compose("config", [*cell])
            raw = cells[cell].copy()
            if seeds:
                raw.seed = parser.parse_overrides(seeds[-1:])[0].value()
            composed.append((member, raw))
        return composed


def command(member: Member) -> list[str]:
    """The member as a run of its own."""
    return [sys.executable, str(Path(sys.argv[0]).resolve()), *member.overrides, "hydra.mode=RUN"]


def _start(member: Member, members: list[Member], waiting: int, jobs: int, window: Window | None) -> None:
    arguments = command(member)
    if jobs > 1 and member.cfg.threads is None:
        arguments.append(f"threads={max(1, cores() // jobs)}")
    place = {"member": members.index(member) + 1, "members": len(members), "waiting": waiting, "jobs": jobs}
    place["pid"] = os.getpid()
    if window:
        place["deadline"] = window.deadline
    environment = {**os.environ, "NORMLOSS_SWEEP": json.dumps(place)}
    # blocked signals are inherited: one that comes while the member starts waits until it listens (StopRequest)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        # a session of its own: Ctrl-C reaches the member once, through us
        member.process = subprocess.Popen(arguments, env=environment, start_new_session=True)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _finish(member: Member) -> None:
    code = member.process.returncode
    state = (read_json(Path(member.cfg.store) / member.cfg.id / "status.json") or {}).get("state")
    if code < 0 and state != "done":
        member.status, member.outcome = 1, f"killed by {signal.Signals(-code).name}: start again to go on"
    else:
        member.status = max(0, code)
        member.outcome = OUTCOMES.get(member.status, f"exit status {member.status}")


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
