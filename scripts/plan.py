"""Lists an experiment's runs and their states, the hours left, and the command that trains missing runs.

python scripts/plan.py table1 [key=value ...] [--dry] [--watch]

Hours are estimated from finished runs of the same network and data, else from a run's own epochs so far.
--dry prints the config of every run; --watch prints the plan again when it changes, until no run is queued or running.
Trains nothing.
"""

import argparse
import sys
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

import checkout  # noqa: F401  before the slow imports
import yaml

from normloss.analysis.select import gather
from normloss.cli import entry, start
from normloss.config import CONFIGS, labels, trained_config
from normloss.errors import UserError
from normloss.runs.records import existing_folder
from normloss.sweeps import slurm
from normloss.sweeps.composing import expand
from normloss.training.durations import Durations, share_done, spell

WATCH_SECONDS = 5.0


def main(arguments: list[str]) -> int:
    parser = start.Parser(__doc__)
    parser.add_argument("experiment", help="name of a file in configs/experiment, such as table1")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="arguments of train.py")
    parser.add_argument("--results", type=Path, default=Path("results"), help="archived runs (%(default)s)")
    parser.add_argument("--dry", action="store_true", help="print the config of every run")
    parser.add_argument("--watch", action="store_true", help="print it again while runs are queued or running")
    options = parser.parse_intermixed_args(arguments)
    return entry.script(lambda: watch(options) if options.watch else print(plan(options)[0]))


def watch(options: argparse.Namespace) -> None:
    """Print the plan, and again when it has changed, until no run is queued or running."""
    shown, going = "", True
    while going:
        text, going = plan(options)
        if text != shown:
            print(f"{datetime.now():%H:%M:%S}  {text}\n", flush=True)
            shown = text
        if going:
            time.sleep(WATCH_SECONDS)


def plan(options: argparse.Namespace) -> tuple[str, bool]:
    """Return what to print, and whether a run is queued or running."""
    there = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
    if options.experiment not in there:
        raise UserError(f"experiment: must be one of {' '.join(there)}, got {options.experiment!r}")
    words = [f"experiment={options.experiment}", *options.overrides]
    configs = {cfg.id: cfg for cfg in expand(words)}
    if options.dry:
        trained = {cfg.id: trained_config(cfg.stored()) for cfg in configs.values()}
        return "\n".join(yaml.safe_dump({id: what}, sort_keys=False) for id, what in trained.items()), False
    store = Path(next(iter(configs.values())).store)
    runs = gather(store, existing_folder(options.results))
    found, times = {run.id: run for run in runs}, Durations(runs)
    try:
        queued, unknown = slurm.queue(store), []
    except UserError as error:  # the store alone has much of it
        queued, unknown = {}, [f"  the jobs in the queue are not known ({error})"]
    states: Counter[str] = Counter()
    known: list[float] = []  # seconds that unfinished runs still need
    lines: list[str] = []
    sources: dict[str, None] = {}  # what the hours were reckoned from, each once
    for cfg, name in zip(configs.values(), labels.distinct([cfg.stored() for cfg in configs.values()]), strict=True):
        record = found.get(cfg.id)
        state = slurm.state_with(record.state if record else "missing", queued.get(cfg.id))
        states[state] += 1
        batch = "" if "batch_size=" in name else f" batch={cfg.train.batch_size}"
        lines.append(f"  {cfg.id}  {name}{batch}  {state}")
        if state == "done":
            continue
        estimate = times.estimate(cfg)
        if record and record.epochs:
            lines[-1] += f"  epoch {len(record.epochs)}/{cfg.train.epochs}"
        if estimate:
            known.append(estimate.left(share_done(cfg)))
            lines[-1] += f", {spell(known[-1])} left" if state == "running" else ""
            setting = f"{cfg.dataset.name} {cfg.model.name} {cfg.reg.name}, batch {cfg.train.batch_size}"
            sources[f"  {setting}, {cfg.train.precision}: {estimate}"] = None
    counts = ", ".join(f"{states[state]} {state}" for state in sorted(states))
    missing = len(configs) - states["done"]
    left = spell(sum(known)) if known or not missing else "unknown"
    if known and len(known) < missing:
        left += f", and {missing - len(known)} runs without an estimate (no similar run has finished)"
    lines = [f"{options.experiment}: {len(configs)} runs: {counts}", *unknown, *lines, f"left: {left}", *sources]
    if states["diverged"]:
        lines.append("to train a diverged run anew: its own command with restart=true")
    if missing:
        lines.append(f"to train missing runs: python train.py {' '.join(words)}")
    return "\n".join(lines), bool(states["running"] or states["queued"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
