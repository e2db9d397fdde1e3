"""Lists an experiment's runs: done, running, queued, diverged, missing; hours left; the command that trains the rest.

python scripts/plan.py table1 [key=value ...] [--dry] [--watch]

Hours come from finished runs of the same network and data, else from a run's own epochs so far.
--dry shows the config of every run; --watch shows the plan anew whenever it changes, while a run is queued or running.
Nothing is trained.
"""

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import checkout  # noqa: F401  before the slow imports
import yaml

from normloss.analysis.select import gather
from normloss.cli import entry
from normloss.config import CONFIGS, Config, labels, trained_config
from normloss.errors import UserError
from normloss.runs.records import RunRecord
from normloss.sweeps import slurm
from normloss.sweeps.composing import expand
from normloss.training.durations import Durations, Estimate, share_done, spell

WATCH_SECONDS = 5.0


@dataclass(frozen=True)
class Member:
    """A run of the experiment."""

    cfg: Config
    state: str  # as in the store, queued or missing
    epochs: int  # done
    estimate: Estimate | None  # of how long the whole run takes

    @property
    def left(self) -> float | None:
        """Seconds that it still needs, where that is known."""
        return self.estimate.left(share_done(self.cfg)) if self.estimate else None


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="a name of configs/experiment, such as table1")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for train.py")
    parser.add_argument("--results", type=Path, default=Path("results"), help="archived runs (%(default)s)")
    parser.add_argument("--dry", action="store_true", help="show the config of every run")
    parser.add_argument("--watch", action="store_true", help="go on showing it while runs are queued or running")
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
    """What to print, and whether a run is queued or running."""
    there = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
    if options.experiment not in there:
        raise UserError(f"experiment: must be one of {' '.join(there)}, got {options.experiment!r}")
    words = [f"experiment={options.experiment}", *options.overrides]
    configs = {cfg.id: cfg for cfg in expand(words)}
    if options.dry:
        trained = {cfg.id: trained_config(cfg.stored()) for cfg in configs.values()}
        return "\n".join(yaml.safe_dump({id: what}, sort_keys=False) for id, what in trained.items()), False
    store = Path(next(iter(configs.values())).store)
    runs = gather(store, options.results)
    found, times = {run.id: run for run in runs}, Durations(runs)
    queued, unknown = _queued(store)
    members = [member(cfg, found.get(cfg.id), queued.get(cfg.id), times) for cfg in configs.values()]
    states = Counter(each.state for each in members)
    counts = ", ".join(f"{states[state]} {state}" for state in sorted(states))
    lines = [f"{options.experiment}: {len(members)} runs: {counts}"]
    names = labels.distinct([each.cfg.stored() for each in members])
    lines += [*unknown, *(line(each, name) for each, name in zip(members, names, strict=True))]
    lines += time_left([each for each in members if each.state != "done"])
    if states["diverged"]:
        lines.append("a diverged run is trained anew by its own command with restart=true")
    if any(each.state != "done" for each in members):
        lines.append(f"to go on: python train.py {' '.join(words)}")
    return "\n".join(lines), bool(states["running"] or states["queued"])


def _queued(store: Path) -> tuple[dict[str, slurm.Queued], list[str]]:
    """What is in SLURM's queue, and a line where it cannot be asked: the store alone tells a lot."""
    try:
        return slurm.queue(store), []
    except UserError as error:
        return {}, [f"  what is queued is not known ({error})"]


def member(cfg: Config, record: RunRecord | None, queued: slurm.Queued | None, times: Durations) -> Member:
    state = slurm.state_with(record.state if record else "missing", queued)
    done = state == "done"
    return Member(cfg, state, 0 if done or not record else len(record.epochs), None if done else times.estimate(cfg))


def line(each: Member, name: str) -> str:
    place = f"  epoch {each.epochs}/{each.cfg.train.epochs}" if each.epochs else ""
    if each.state == "running" and each.left is not None:
        place += f", {spell(each.left)} left"
    batch = "" if "batch_size=" in name else f" batch={each.cfg.train.batch_size}"
    return f"  {each.cfg.id}  {name}{batch}  {each.state}{place}"


def time_left(missing: list[Member]) -> list[str]:
    """The sum over what is left, one run after the other, and a line for each thing that it was reckoned from."""
    known = [each.left for each in missing if each.left is not None]
    unknown = len(missing) - len(known)
    text = spell(sum(known)) if known or not unknown else "unknown"
    text += f", and {unknown} runs like none that was trained" if known and unknown else ""
    sources = [f"  {_setting(each.cfg)}: {each.estimate}" for each in missing if each.estimate]
    return [f"left: {text}", *dict.fromkeys(sources)]


def _setting(cfg: Config) -> str:
    return f"{cfg.dataset.name} {cfg.model.name} {cfg.reg.name}, batch {cfg.train.batch_size}, {cfg.train.precision}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
