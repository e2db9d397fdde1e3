"""The comparisons of methods that experiments' files ask for, and those of a store, as far as their runs are there."""

from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf

from normloss.analysis.ranking import Ranking, rank
from normloss.analysis.select import done
from normloss.config import CONFIGS
from normloss.sweeps import comparison, tuning
from normloss.sweeps.comparison import Comparison, RunState


def rankings(df: pd.DataFrame, folder: Path = CONFIGS / "experiment") -> list[Ranking]:
    """Of the experiments of a folder: those of which a method is tried to the end."""
    if not held_out(df):  # composing costs seconds
        return []
    names = [path.stem for path in sorted(folder.glob("*.yaml")) if "compare" in OmegaConf.load(path)]
    return _ranked(df, [tuning.Search([f"experiment={name}"]).comparison for name in names])


def of_store(df: pd.DataFrame, store: Path) -> list[Ranking]:
    """Of the files that train.py compare=... wrote to a store, but for those that an experiment asks for."""
    found = [comparison.read(path) for path in sorted((store / comparison.FOLDER).glob("*.json"))]
    return _ranked(df, [one for one in found if not any(word.startswith("experiment=") for word in one.words)])


def held_out(df: pd.DataFrame) -> bool:
    """Whether a run is done that held images out, which every trial of a comparison does."""
    return "dataset.val" in df and bool((done(df)["dataset.val"] != 0).any())


def _ranked(df: pd.DataFrame, asked: list[Comparison]) -> list[Ranking]:
    seen = {run.id: RunState(run.state, run.record.final) for run in df.itertuples()}
    found = [rank(one, lambda id: seen.get(id, RunState())) for one in asked]
    return [ranking for ranking in found if ranking.methods]
