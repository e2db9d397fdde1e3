"""Compares methods: a table and a figure of whatever runs match.

python scripts/compare.py dataset=digits model=resnet8 reg=wd,nl
python scripts/compare.py dataset=cifar100 model=wrn28_10 reg.lam=5e-4 train.batch_size=64 --name fig3
python scripts/compare.py experiment=demo

experiment=NAME stands for the runs that train.py experiment=NAME trains, whatever started them. Any other condition is
a key of a run's config and its values, written as for train.py: any of these.
"""

if __name__ == "__main__":  # before the slow imports
    from normloss.cli import start

    start.prepare()

import argparse
import re
import sys
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from normloss.analysis import figures, style, tables
from normloss.analysis.select import as_cell, describe_setting, frame, methods, spelled, where
from normloss.cli import entry
from normloss.errors import UserError
from normloss.runs.records import load_runs
from normloss.sweeps.members import expand

STORE = Path("results/runs")
GROUPS = ("dataset", "model", "reg")  # chosen by name on the command line


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    return entry.script(lambda: compare(options.conditions, options.store, options.out, options.name))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conditions", nargs="*", metavar="key=value")
    parser.add_argument("--store", type=Path, default=STORE, help="the runs (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results"), help="holds tables/ and figures/ (%(default)s)")
    parser.add_argument("--name", help="of the files (default: the values of the conditions)")
    # store=DIR, as train.py has it, is --store=DIR
    spelled_out = [f"--{word}" if re.match("(store|out|name)=", word) else word for word in arguments]
    return parser.parse_intermixed_args(spelled_out)


def compare(words: list[str], store: Path, out: Path, name: str | None) -> None:
    df = frame(load_runs(store))
    experiment = [word for word in words if word.startswith("experiment=")]
    conditions = read_conditions([word for word in words if word not in experiment])
    if experiment:
        df = df[df["id"].isin({cfg.id for cfg in expand(experiment)})]
    df = where(df, conditions)
    command = f"python train.py {' '.join(words)}" if experiment else train_command(conditions, store)
    if df.empty:
        raise UserError(f"no run in {store} has {' '.join(words) or 'a config'}; to make some: {command}")
    if not (df["state"] == "done").any():
        states = ", ".join(f"{run.id} {run.state}" for run in df.itertuples())
        raise UserError(f"of the {len(df)} that match no run is done ({states}); to go on: {command}")

    name = name or "_".join(re.sub(r"[^\w.]+", "-", word.partition("=")[2]) for word in words) or "runs"
    table = tables.comparison(df, name)
    figure = figures.training(methods(df), describe_setting(df))
    try:
        table.save(out / "tables")
        style.save(figure, out / "figures" / name)
    except OSError as error:
        raise UserError(f"out: must be a folder that can be written, got {out} ({error.strerror})") from None
    print(table.markdown())
    print(
        f"Written: {out}/tables/{name}.md, .tex and .csv, {out}/figures/{name}.png and .pdf."
        " Next: another reg= or seed=, or the paper's run: python train.py model=resnet110 reg=nl"
    )


def read_conditions(words: list[str]) -> dict[str, list]:
    """["reg=wd,nl", "seed=0"] -> {"reg.name": ["wd", "nl"], "seed": [0]}: any of these, in train.py's grammar."""
    try:
        overrides = OverridesParser.create().parse_overrides(words)
        values = [list(o.sweep_iterator()) if o.is_sweep_override() else [o.value()] for o in overrides]
    except HydraException as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{' '.join(words)}: must be key=value ..., like dataset=digits reg=wd,nl ({reason})") from None
    keys = [o.key_or_group for o in overrides]
    keys = [f"{key}.name" if key in GROUPS else key for key in keys]
    return {key: [as_cell(value) for value in row] for key, row in zip(keys, values, strict=True)}


def spell_values(values: list) -> str:
    return ",".join(map(spelled, values))


def train_command(conditions: dict[str, list], store: Path) -> str:
    """What trains the runs that were asked for: wd and nl, three seeds, unless the conditions say which."""
    wanted = {"reg.name": ["wd", "nl"], "seed": [0, 1, 2]}
    wanted = conditions | {key: values for key, values in wanted.items() if key not in conditions}
    if store != STORE:
        wanted["store"] = [str(store)]
    sweep = "-m " if any(len(values) > 1 for values in wanted.values()) else ""
    return f"python train.py {sweep}" + " ".join(
        f"{key.removesuffix('.name')}={spell_values(values)}" for key, values in wanted.items()
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
