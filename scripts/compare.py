"""Compares methods: a table and a figure of whatever runs match.

python scripts/compare.py dataset=digits model=resnet8
python scripts/compare.py dataset=cifar100 model=wrn28_10 reg.lam=5e-4 train.batch_size=64 --name fig3

A condition is a key of a run's config and its value; as for train.py, dataset=digits says dataset.name=digits.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from normloss.analysis import figures, tables
from normloss.analysis.select import describe_setting, flatten, frame, methods, spelled, where
from normloss.errors import Stop, UserError
from normloss.store import load_runs, write_whole

STORE = Path("results/runs")
GROUPS = ("dataset", "model", "reg")  # chosen by name on the command line


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    try:
        compare(options.conditions, options.store, options.out, options.name)
    except Stop as stop:
        print(f"normloss: {stop}", file=sys.stderr)
        return stop.status
    return 0


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
    conditions = read_conditions(words)
    df = where(frame(load_runs(store)), conditions)
    if df.empty:
        raise UserError(
            f"no run in {store} has {' '.join(words) or 'any value'}; to make some: {train_command(conditions, store)}"
        )
    if not (df["state"] == "done").any():
        states = ", ".join(f"{run.id} {run.state}" for run in df.itertuples())
        raise UserError(f"{len(df)} runs match but none is done ({states}); to go on: {train_command(conditions, store)}")

    table = tables.comparison(df)
    figure = figures.training(methods(df), describe_setting(df))
    name = name or "_".join(re.sub(r"[^\w.-]+", "-", spelled(value)) for value in conditions.values()) or "runs"
    (out / "tables").mkdir(parents=True, exist_ok=True)
    write_whole(out / "tables" / f"{name}.md", table.encode())
    figures.save(figure, out / "figures" / name)
    print(table)
    print(
        f"Written: {out}/tables/{name}.md, {out}/figures/{name}.png and .pdf."
        " Next: another reg= or seed=, or the paper's run: python train.py model=resnet110 reg=nl"
    )


def read_conditions(words: list[str]) -> dict[str, Any]:
    """["dataset=digits", "reg.lam=1e-3"] -> {"dataset.name": "digits", "reg.lam": 0.001}."""
    for word in words:
        if "=" not in word:
            raise UserError(f"{word}: must be key=value, like dataset=digits")
    words = [re.sub(rf"^({'|'.join(GROUPS)})=", r"\1.name=", word) for word in words]
    return flatten(OmegaConf.to_container(OmegaConf.from_dotlist(words)))


def train_command(conditions: dict[str, Any], store: Path) -> str:
    """What trains the runs that were asked for: wd and nl, three seeds, unless the conditions say which."""
    wanted = {key.removesuffix(".name"): spelled(value) for key, value in conditions.items()}
    sweep = "" if {"reg", "seed"} <= wanted.keys() else "-m "
    wanted.setdefault("reg", "wd,nl")
    wanted.setdefault("seed", "0,1,2")
    if store != STORE:
        wanted["store"] = str(store)
    return f"python train.py {sweep}{' '.join(f'{key}={value}' for key, value in wanted.items())}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
