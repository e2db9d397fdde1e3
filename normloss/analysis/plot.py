"""Tables and figures of any runs, chosen by conditions on their config or as those of an experiment."""

import re
import shlex
from argparse import Namespace
from pathlib import Path
from typing import Any

import pandas as pd

from normloss.analysis.commands import command_of
from normloss.analysis.entries import Entry, Find, Methods, Over, Points, Training
from normloss.analysis.figures import named
from normloss.analysis.paper import Paper
from normloss.analysis.render import Table
from normloss.analysis.select import TRUNCATED, describe_setting, done, load, where, without_truncated
from normloss.analysis.show import save, show
from normloss.analysis.study import Study, read_conditions, read_studies
from normloss.config import did_you_mean
from normloss.errors import UserError

STORE = Path("results/runs")
ID = re.compile("[0-9a-f]{8}")
NEXT = "Next: another reg= or seed=, or the paper's run: python train.py model=resnet110 reg=nl"
SUFFIXES = {"tables": ".md, .tex and .csv", "figures": ".png and .pdf"}


def plot(asked: Namespace) -> str:
    """Write the tables and figures of the runs that match; return the tables and what there is to say.

    asked: the arguments of scripts/compare.py.
    Raises UserError where no run matches or none that matches is done.
    """
    study, words = choose_study(asked.conditions)
    ids = [word for word in words if ID.fullmatch(word)]
    words = [word for word in words if word not in ids]
    conditions = read_conditions(words)
    df = load(asked.store, asked.results, first="store")
    df = df[df["id"].isin(ids)] if ids else df
    matching = where(study.runs(df) if study else df, conditions)
    df = matching if study or ids or {*conditions} & {*TRUNCATED} else without_truncated(matching)
    if matching.empty and ids:
        raise UserError(f"no run in {asked.store} or {asked.results} has the id {' or '.join(ids)}")
    elsewhere = [f"store={asked.store}"] if asked.store != STORE else []
    elsewhere += ["restart=true"] if (df["state"] == "diverged").any() else []
    base = command_of(df["record"]) if len(ids) == 1 else study.command if study else "python train.py -m"
    command = " ".join([base, *map(shlex.quote, [*words, *elsewhere])])
    refuse_nothing_done(df, len(matching), asked, command.replace(".name=", "="))

    parts, files = [], []
    for entry in entries_of(asked, study, df):
        made = show(entry, df, Paper(), study)
        if isinstance(made, list):
            parts += [each.sentence for each in made]
        elif made is not None:
            saved = save(made, entry.name, asked.out)
            parts = [saved.markdown(), *parts] if isinstance(saved, Table) else parts
            files.append(f"{asked.out}/{entry.folder}/{entry.name}{SUFFIXES[entry.folder]}")
    unfinished = [f"{run.state} {run.id}" for run in df.itertuples() if run.state != "done"]
    parts += [f"Not done, not counted: {', '.join(unfinished)}."] if unfinished else []
    return "\n".join([*parts, f"Written: {', '.join(files)}. {NEXT}" if files else NEXT])


def choose_study(words: list[str]) -> tuple[Study | None, list[str]]:
    """Return the experiment of experiment=NAME, and the other words."""
    chosen = [word.partition("=")[2] for word in words if word.startswith("experiment=")]
    if not chosen:
        return None, words
    studies = read_studies()
    if chosen[0] not in studies:
        raise UserError(f"experiment: no such file in configs/experiment{did_you_mean(chosen[0], [*studies])}")
    return studies[chosen[0]], [word for word in words if not word.startswith("experiment=")]


def refuse_nothing_done(df: pd.DataFrame, matching: int, asked: Namespace, command: str) -> None:
    if df.empty and matching:
        raise UserError(
            f"every run that matches is truncated ({matching}): only a condition on {' or '.join(TRUNCATED)} or an id"
            f" chooses such runs; to train whole ones: {command}"
        )
    if df.empty:
        words = " ".join(asked.conditions) or "a config"
        raise UserError(f"no run in {asked.store} or {asked.results} has {words}; to make some: {command}")
    if done(df).empty:
        states = ", ".join(f"{run.id} {run.state}" for run in df.itertuples())
        raise UserError(f"of the {len(df)} that match no run is done ({states}); to train them: {command}")


def entries_of(asked: Namespace, study: Study | None, df: pd.DataFrame) -> list[Entry]:
    """Return what is shown: a quantity over the key x, what the experiment's file says, or training and a table."""
    values = (word.rpartition("=")[2] for word in asked.conditions)
    name = asked.name or "_".join(re.sub(r"[^\w.]+", "-", value) for value in values)
    title = describe_setting(done(df))
    both: dict[str, Any] = {"name": name or "runs", "title": title}
    if asked.x:
        y = asked.y or "test_error"
        over = both | {"x": asked.x, "y": y}
        return [Over(**over | {"title": f"{named(y)} over {named(asked.x)}: {title}"}), Points(**over)]
    if asked.y:
        raise UserError("--y: needs --x, the config key that it is drawn over")
    if study:
        return sorted(study.show, key=lambda entry: isinstance(entry, Find))
    return [Training(**both), Methods(**both)]
