"""The paper's studies and their scaled-down twins: the same questions asked of other runs."""

from dataclasses import dataclass

import pandas as pd

from normloss.analysis.paper import Cell
from normloss.analysis.select import matching

METHODS = ("wd", "nl")


@dataclass(frozen=True)
class Study:
    """Which runs a figure is drawn from; never those of the other study."""

    prefix: str  # of its files and experiments
    title: str  # what a reader must know about it, in every title
    sweeps: tuple[str, ...]  # the setting of Figs. 2, 3 and 4: lambda, batch size
    curves: tuple[str, ...]  # the setting of Figs. 5 and 6, and of annealing
    anneal: str  # what reg.lam_milestones is there
    all_methods: tuple[str, ...]  # the setting in which every method was run

    def command(self, experiment: str) -> str:
        return f"python train.py experiment={self.prefix}{experiment}"

    def sweep(self, df: pd.DataFrame, method: str, free: tuple[str, ...]) -> pd.DataFrame:
        """Finished runs of a method at the setting of the sweeps, whatever `free` is in them."""
        chosen = matching(df, Cell((*self.sweeps, f"reg={method}")).config, ("seed", *free))
        return chosen[chosen["state"] == "done"]

    def trained(self, df: pd.DataFrame, *overrides: str) -> pd.DataFrame:
        """Finished runs at the setting of the curves, all seeds."""
        return Cell((*self.curves, *overrides)).done(df)


PAPER = Study(
    prefix="",
    title="",
    sweeps=("dataset=cifar100", "model=wrn28_10"),
    curves=("dataset=cifar10", "model=wrn28_10"),
    anneal="[53,107]",
    all_methods=("dataset=cifar10", "model=resnet110"),
)
SMALL = ("dataset=cifar10", "model=resnet8", "recipe=mini")
MINI = Study(
    prefix="mini_",
    title="Scaled down, not the paper's: ResNet8, 2 epochs",
    sweeps=SMALL,
    curves=SMALL,
    anneal="[1]",
    all_methods=SMALL,
)
STUDIES = (PAPER, MINI)


def annealed(study: Study) -> dict[str, tuple[str, ...]]:
    """label -> overrides of what nl_anneal compares."""
    schedule = f"reg.lam_milestones={study.anneal}"
    return {
        "wd": ("reg=wd",),
        "nl, λ constant": ("reg=nl",),
        "nl, λ a tenth at each drop": ("reg=nl", schedule, "reg.lam_gamma=0.1"),
        "nl, dropped": ("reg=nl", schedule, "reg.lam_gamma=0"),
    }
