"""What an experiment still needs: done, running, diverged, missing; hours left; the command to go on.

python scripts/plan.py table1 [key=value ...] [--measure] [--dry]

Hours come from finished runs of the same network and data, or with --measure from some seconds on this device.
--dry shows the config of every run. Nothing is trained.
"""

if __name__ == "__main__":  # before the slow imports
    from normloss.cli import start

    start.prepare()

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

from normloss.analysis.cost import estimate
from normloss.analysis.select import load
from normloss.cli import entry
from normloss.config import CONFIGS, Config, science
from normloss.errors import UserError
from normloss.runs.records import RunRecord
from normloss.sweeps.budget import seconds_left
from normloss.sweeps.durations import Pace, kind, knows, measure_paces, run_seconds, spell_hours
from normloss.sweeps.members import expand


@dataclass(frozen=True)
class Member:
    cfg: Config
    state: str  # as in the store, or missing
    epochs: int  # done

    @property
    def left(self) -> float:
        """Share of the run that is still to be trained."""
        return 0.0 if self.state == "done" else max(0.0, 1 - self.epochs / self.cfg.train.epochs)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="a name of configs/experiment, such as table1")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for train.py")
    parser.add_argument("--results", type=Path, default=Path("results"), help="archived runs (%(default)s)")
    parser.add_argument("--measure", action="store_true", help="time the steps of each network on this device")
    parser.add_argument("--dry", action="store_true", help="show the config of every run")
    options = parser.parse_intermixed_args(arguments)
    return entry.script(lambda: print(plan(options)))


def plan(options: argparse.Namespace) -> str:
    there = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
    if options.experiment not in there:
        raise UserError(f"experiment: must be one of {' '.join(there)}, got {options.experiment!r}")
    words = [f"experiment={options.experiment}", *options.overrides]
    configs = {cfg.id: cfg for cfg in expand(words)}
    if options.dry:
        trained = {cfg.id: science(cfg.stored()) for cfg in configs.values()}
        return "\n".join(yaml.safe_dump({id: what}, sort_keys=False) for id, what in trained.items())
    df = load(Path(next(iter(configs.values())).store), options.results)
    found = {record.id: record for record in df["record"]}
    members = [member(cfg, found.get(cfg.id)) for cfg in configs.values()]
    states = Counter(each.state for each in members)
    counts = ", ".join(f"{states[state]} {state}" for state in sorted(states))
    lines = [f"{options.experiment}: {len(members)} runs: {counts}"]
    lines += [line(each) for each in members]
    hours, sources = hours_left(members, df, options.measure)
    lines += [f"left: {hours}", *sources]
    if states["diverged"]:
        lines.append("a diverged run is trained anew by its own command with restart=true")
    if any(each.left for each in members):
        lines.append(f"to go on: python train.py {' '.join(words)}")
    return "\n".join(lines)


def member(cfg: Config, record: RunRecord | None) -> Member:
    return Member(cfg, record.state, len(record.epochs)) if record else Member(cfg, "missing", 0)


def line(each: Member) -> str:
    cfg = each.cfg
    place = f"  epoch {each.epochs}/{cfg.train.epochs}" if each.epochs > 0 and each.state != "done" else ""
    return f"  {cfg.id}  {cfg.label} batch={cfg.train.batch_size}  {each.state}{place}"


def hours_left(members: list[Member], df, measure: bool) -> tuple[str, list[str]]:
    """The sum over what is left, and what it was reckoned from."""
    missing = [each for each in members if each.left]
    if measure:
        return measured_hours(missing)
    total, sources, unknown = 0.0, {}, 0
    for each in missing:
        known = estimate(df, each.cfg)
        if known:
            sources[known.run] = f"  {each.cfg.model.name}, batch {each.cfg.train.batch_size}: {known}"
            total += each.left * known.hours
        else:
            unknown += 1
    text = spell_hours(total) if total or not unknown else "unknown"
    if unknown:
        text += f", and {unknown} runs of which none was trained yet" if total else ""
        sources["unknown"] = "  python scripts/plan.py ... --measure times them on this device"
    return text, list(sources.values())


def measured_hours(members: list[Member]) -> tuple[str, list[str]]:
    for each in members:
        if not knows(each.cfg):
            raise UserError(f"--measure: must know how many images there are, got dataset={each.cfg.dataset.name}")
    configs = [each.cfg for each in members]
    paces = measure_paces(configs)
    lines = {kind(cfg): f"  {' '.join(map(str, kind(cfg)))}: {told(cfg, paces[kind(cfg)])}" for cfg in configs}
    seconds = sum(seconds_left(cfg, paces) for cfg in configs)
    return spell_hours(seconds / 3600), list(lines.values())


def told(cfg: Config, pace: Pace) -> str:
    return f"{spell_hours(run_seconds(cfg, pace.step) / 3600)} a run, measured here"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
