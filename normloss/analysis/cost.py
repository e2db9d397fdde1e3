"""How long a run takes: from the runs of a store or the archive."""

from dataclasses import dataclass

import pandas as pd

from normloss.config import Config
from normloss.sweeps.durations import spell_hours


@dataclass(frozen=True)
class Estimate:
    """Of one whole run."""

    hours: float  # of the device, which it may have shared with other seeds
    device: str
    run: str  # the id it was taken from
    together: int = 1

    def __str__(self) -> str:
        return f"about {spell_hours(self.hours)} a run, as {self.run} took on {self.device}{at_once(self.together)}"


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
    together = record.meta.get("together", 1)
    hours = record.final["seconds"] / record.final["epochs"] * cfg.train.epochs / 3600 / together
    return Estimate(hours, record.meta.get("device_name", "?"), record.id, together)


def comparable_times(one: pd.DataFrame, other: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """The runs of both that had the device to themselves, else that shared it with as many others; and how many, in
    words. Where one has no runs, the other's; neither's where none are alike."""
    together = [runs["record"].map(lambda record: record.meta.get("together", 1)) for runs in (one, other)]
    found = [set(values) for values in together if len(values)]
    both = sorted(set.intersection(*found)) if found else []
    if not both:
        return one.iloc[:0], other.iloc[:0], ""
    return one[together[0] == both[0]], other[together[1] == both[0]], at_once(both[0])


def at_once(together: int) -> str:
    return f", {together} seeds at once" if together > 1 else ""
