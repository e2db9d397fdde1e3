"""How long a run takes: from the runs of a store or the archive."""

from dataclasses import dataclass

import pandas as pd

from normloss.config import Config
from normloss.workload import spell_hours


@dataclass(frozen=True)
class Estimate:
    """Of one whole run."""

    hours: float
    device: str
    run: str  # the id it was taken from

    def __str__(self) -> str:
        return f"about {spell_hours(self.hours)} a run, as {self.run} took on {self.device}"


def estimate(df: pd.DataFrame, cfg: Config) -> Estimate | None:
    """From the newest finished run of this data, network and batch size, its own method first; None: no such run."""
    if df.empty:
        return None
    same = df[
        (df["state"] == "done")
        & (df["dataset.name"] == cfg.dataset.name)
        & (df["model.name"] == cfg.model.name)
        & (df["train.batch_size"] == cfg.train.batch_size)
        & (df["train.precision"] == cfg.train.precision)
    ]
    own = same[same["reg.name"] == cfg.reg.name]
    candidates = [record for record in (own if len(own) else same)["record"] if record.final["epochs"]]
    if not candidates:
        return None
    record = max(candidates, key=lambda record: record.meta.get("started", ""))
    hours = record.final["seconds"] / record.final["epochs"] * cfg.train.epochs / 3600
    return Estimate(hours, record.meta.get("device_name", "?"), record.id)
