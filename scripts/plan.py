"""Lists an experiment's runs and their states, the hours left, and the command that trains missing runs.

python scripts/plan.py table1 [key=value ...] [--dry]

Hours are estimated from finished runs of the same network and data, else from a run's own epochs so far.
--dry prints the config of every run. Trains nothing.
"""

import argparse
import shlex
import sys
from collections import Counter
from pathlib import Path

import checkout  # noqa: F401  before the slow imports
import yaml

from normloss.analysis.select import gather
from normloss.cli import entry, start
from normloss.config import labels, trained_config
from normloss.runs.records import existing_folder
from normloss.sweeps import slurm
from normloss.sweeps.composing import expand
from normloss.sweeps.members import outlook
from normloss.training.durations import Durations, share_done, spell


def main(arguments: list[str]) -> int:
    parser = start.Parser(__doc__)
    parser.add_argument("experiment", help="name of a file in configs/experiment, such as table1")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="arguments of train.py")
    parser.add_argument("--results", type=Path, default=Path("results"), help="archived runs (%(default)s)")
    parser.add_argument("--dry", action="store_true", help="print the config of every run")
    options = parser.parse_intermixed_args(arguments)
    return entry.script(lambda: print(plan(options)))


def plan(options: argparse.Namespace) -> str:
    """Return what to print."""
    words = [f"experiment={options.experiment}", *options.overrides]
    configs = {cfg.id: cfg for cfg in expand(words)}
    if options.dry:
        trained = {cfg.id: trained_config(cfg.stored()) for cfg in configs.values()}
        return "\n".join(yaml.safe_dump({id: what}, sort_keys=False) for id, what in trained.items())
    store = Path(next(iter(configs.values())).store)
    runs = gather(store, existing_folder(options.results))
    found, queued, times = {run.id: run for run in runs}, slurm.queue(store), Durations(runs)
    states: Counter[str] = Counter()
    missing = []  # runs that are not done
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
        missing.append(cfg)
        if record and record.epochs:
            lines[-1] += f"  epoch {len(record.epochs)}/{cfg.train.epochs}"
        if estimate := times.estimate(cfg):
            lines[-1] += f", {spell(estimate.left(share_done(cfg)))} left" if state == "running" else ""
            setting = f"{cfg.dataset.name} {cfg.model.name} {cfg.reg.name}, batch {cfg.train.batch_size}"
            sources[f"  {setting}, {cfg.train.precision}: {estimate}"] = None
    counts = ", ".join(f"{states[state]} {state}" for state in sorted(states))
    head = f"{options.experiment}: {len(configs)} runs: {counts}"
    lines = [head, *lines, f"left: {outlook(missing, 1, runs)}", *sources]
    if states["diverged"]:
        lines.append("to train a diverged run anew: its own command with restart=true")
    if missing:
        lines.append(f"to train missing runs: python train.py {shlex.join(words)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
