"""Compares methods: a table and a figure of whatever runs match.

python scripts/compare.py dataset=digits model=resnet8 reg=wd,nl
python scripts/compare.py dataset=digits reg=wd,nl --x train.lr
python scripts/compare.py dataset=cifar100 model=wrn28_10 reg.lam=5e-4 train.batch_size=64 --name fig3
python scripts/compare.py experiment=small_fig2
python scripts/compare.py experiment=small_fig2 --x reg.lam --y norm_mean

experiment=NAME stands for the runs that train.py experiment=NAME trains, whatever started them; without --x it makes
what the experiment's file says. Any other condition is a key of a run's config and its values, written as for train.py:
any of these. --x is a key of the config, --y what a run logs. Trials (train.max_steps, train.eval_batches) are left
out unless a condition names one of these keys.
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run this checkout's code

if __name__ == "__main__":  # before the slow imports
    from normloss.cli import start

    start.prepare()

import pandas as pd
from matplotlib.figure import Figure

from normloss.analysis import figures, style, tables
from normloss.analysis.findings import find
from normloss.analysis.kinds import Find, Over, PaperRows, Points, Training
from normloss.analysis.render import Table
from normloss.analysis.select import TRIALS, describe_setting, done, ended, load, spelled, where, without_trials
from normloss.analysis.study import Study, read_conditions, read_studies
from normloss.cli import entry
from normloss.config import did_you_mean
from normloss.errors import UserError

STORE = Path("results/runs")


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    return entry.script(lambda: compare(options))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conditions", nargs="*", metavar="key=value")
    parser.add_argument("--x", metavar="KEY", help="a point for each value of this config key, such as reg.lam")
    parser.add_argument("--y", metavar="NAME", help="what a run logs (test_error)")
    parser.add_argument("--store", type=Path, default=STORE, help="the runs (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="archived runs (%(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("results/compare"), help="gets tables/, figures/ (%(default)s)"
    )
    parser.add_argument("--name", help="of the files (default: the values of the conditions)")
    # store=DIR, as train.py has it, is --store=DIR
    spelled_out = [f"--{word}" if re.match("(store|results|out|name)=", word) else word for word in arguments]
    return parser.parse_intermixed_args(spelled_out)


def compare(options: argparse.Namespace) -> None:
    study, words = choose_study(options.conditions)
    conditions = read_conditions(words)
    df = load(options.store, options.results, first="store")
    if study:
        df = study.runs(df)
    elif not {*conditions} & {*TRIALS}:
        df = without_trials(df)
    df = where(df, conditions)
    command = " ".join([study.command, *words]) if study else train_command(conditions, options.store)
    refuse_nothing_done(df, options, command)

    name = options.name or "_".join(re.sub(r"[^\w.]+", "-", word.partition("=")[2]) for word in options.conditions)
    if "/" in name:
        raise UserError(f"--name: must be the name of files, got {name}; --out=DIR says where they go")
    made = make(study, df, options, name or "runs")
    with entry.written("out", options.out):
        for each, drawn in made.items():
            if isinstance(drawn, Table):
                drawn.save(options.out / "tables")
            else:
                style.save(drawn, options.out / "figures" / each[1])
    for drawn in made.values():
        if isinstance(drawn, Table):
            print(drawn.markdown())
    for sentence in sentences(study, done(df)):
        print(sentence)
    unfinished = [f"{run.state} {run.id}" for run in df.itertuples() if run.state != "done"]
    if unfinished:
        print(f"Not done, not counted: {', '.join(unfinished)}.")
    suffixes = {"tables": ".md, .tex and .csv", "figures": ".png and .pdf"}
    files = [f"{options.out}/{folder}/{each}{suffixes[folder]}" for folder, each in made]
    print(
        f"Written: {', '.join(files)}. Next: another reg= or seed=, or the paper's run: python train.py model=resnet110"
        " reg=nl"
    )


def choose_study(words: list[str]) -> tuple[Study | None, list[str]]:
    """The experiment of experiment=NAME, and the other words."""
    chosen = [word.partition("=")[2] for word in words if word.startswith("experiment=")]
    if not chosen:
        return None, words
    studies = read_studies()
    if chosen[0] not in studies:
        raise UserError(f"experiment: no such file in configs/experiment{did_you_mean(chosen[0], [*studies])}")
    return studies[chosen[0]], [word for word in words if not word.startswith("experiment=")]


def refuse_nothing_done(df: pd.DataFrame, options: argparse.Namespace, command: str) -> None:
    if df.empty:
        words = " ".join(options.conditions) or "a config"
        raise UserError(f"no run in {options.store} has {words}; to make some: {command}")
    if done(df).empty:
        states = ", ".join(f"{run.id} {run.state}" for run in df.itertuples())
        raise UserError(f"of the {len(df)} that match no run is done ({states}); to go on: {command}")


def make(
    study: Study | None, df: pd.DataFrame, options: argparse.Namespace, name: str
) -> dict[tuple[str, str], Table | Figure]:
    """(folder, name) -> what is made of the finished runs of `df`; of an experiment, what its file says."""
    y, title = options.y or "test_error", describe_setting(done(df))
    with style.look():
        if options.x:
            over = Over(
                x=options.x, y=y, name=name, title=f"{figures.named(y)} over {figures.named(options.x)}: {title}"
            )
            drawn = figures.draw(df, over)
            table = tables.points(df, options.x, y, name, title)
        elif study:
            return of_file(study, ended(df))
        elif options.y:
            raise UserError("--y: needs --x, the config key that it is drawn over")
        else:
            drawn = figures.draw(df, Training(name=name, title=title))
            table = tables.comparison(df, name, timed=True)
    return {("tables", name): table, ("figures", name): drawn}


def of_file(study: Study, df: pd.DataFrame) -> dict[tuple[str, str], Table | Figure]:
    made: dict[tuple[str, str], Table | Figure] = {}
    for shown in study.show:
        runs = where(df, shown.where)
        if isinstance(shown, Find) or done(runs).empty:
            continue
        if isinstance(shown, PaperRows):  # the methods, network by network
            for model, some in runs.groupby("model.name"):
                name = f"{shown.name}_{model}"
                made["tables", name] = tables.comparison(some, name, f"{shown.title}, {model}", timed=True)
        elif isinstance(shown, Points):
            table = tables.points(runs, shown.x, shown.y, shown.name, shown.title, shown.by)
            made["tables", shown.name] = table
        elif shown.folder == "tables":
            made["tables", shown.name] = tables.comparison(runs, shown.name, shown.title, shown.by, timed=True)
        else:
            made["figures", shown.name] = figures.draw(runs, shown)
    return made


def sentences(study: Study | None, df: pd.DataFrame) -> list[str]:
    found = [shown for shown in study.show if isinstance(shown, Find)] if study else []
    return [each.sentence for shown in found for each in find(where(df, shown.where), shown)]


def train_command(conditions: dict[str, list], store: Path) -> str:
    """What trains the runs that were asked for: wd and nl, three seeds, unless the conditions say which."""
    wanted: dict[str, list] = {"reg.name": ["wd", "nl"], "seed": [0, 1, 2]}
    wanted = conditions | {key: values for key, values in wanted.items() if key not in conditions}
    if store != STORE:
        wanted["store"] = [str(store)]
    sweep = "-m " if any(len(values) > 1 for values in wanted.values()) else ""
    return f"python train.py {sweep}" + " ".join(
        f"{key.removesuffix('.name')}={','.join(map(spelled, values))}" for key, values in wanted.items()
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
