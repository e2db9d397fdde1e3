"""The entries that `show` of an experiment's file can have, and their keys. Data only; show.py makes them.

docs/experiments.md lists them for people.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from normloss.analysis.select import as_cell

NAMED = ("dataset", "model", "reg")  # groups of which a run's config holds the name


def conditions_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return conditions on a config: {"model": "wrn28_10"} -> {"model.name": ["wrn28_10"]}; of several values any."""
    rows = {key: value if isinstance(value, list) else [value] for key, value in values.items()}
    return {f"{key}.name" if key in NAMED else key: [as_cell(one) for one in row] for key, row in rows.items()}


Where = Annotated[dict[str, Any], AfterValidator(conditions_of)]
FACTS = ("result", "interval", "n", "reading")  # of a finding, that its headline may name
Scale = Literal["auto", "linear", "log"]


def checked_headline(text: str) -> str:
    """Return a headline; raises ValueError for braces with anything but FACTS."""
    try:
        text.format(**dict.fromkeys(FACTS, ""))
    except (AttributeError, IndexError, KeyError, ValueError):
        raise ValueError(f"must name only {' '.join(FACTS)} in braces") from None
    return text


class Entry(BaseModel):
    """A plot, table or finding that is made of a study's runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    folder: ClassVar[str]  # of results/
    AXES: ClassVar[tuple[str, ...]] = ()  # its keys that name keys of a run's config
    name: str = ""  # of its files; the experiment's where it is not given
    title: str = ""  # the study's where it is not given
    where: Where = {}  # the runs that it is made of: config values, as on the command line
    by: list[str] = []  # config keys outside reg that may differ between lines and rows


class Swept(Entry):
    AXES: ClassVar[tuple[str, ...]] = ("x",)
    x: str  # a config key
    y: str = "test_error"  # a logged quantity


class Plot(Entry):
    folder: ClassVar[str] = "figures"


class Over(Plot, Swept):
    """A logged quantity at the end of training over a config key: one line per method, seeds as interval or points."""

    xscale: Scale = "auto"
    yscale: Scale = "auto"
    xlabel: str = ""
    ylabel: str = ""


class Curves(Plot):
    """A logged quantity during training. y: a key of epochs.jsonl or test_accuracy; train_ce of each step by step."""

    y: str = "test_error"
    x: Literal["epoch", "hours"] = "epoch"
    smooth: Literal[19] | None = None  # steps: train_ce of each step; the archive holds only this window's mean
    yscale: Scale = "auto"
    ylabel: str = ""


class Training(Plot):
    """Cross entropy, test error and filter norm during training."""


class Heatmap(Plot):
    """A logged quantity over two config keys, one panel per method."""

    AXES: ClassVar[tuple[str, ...]] = ("x", "y")
    x: str
    y: str
    z: str = "test_error"


class Layers(Plot):
    """Filter norm, effective learning rate lr / |w|^2 and degrees turned per epoch, by layer group and epoch."""

    y: list[Literal["norm", "effective_lr", "turn"]] = ["norm", "effective_lr", "turn"]


class Tabular(Entry):
    folder: ClassVar[str] = "tables"


class Methods(Tabular):
    """One row per method: n, best, mean, spread, interval; p against weight decay, paired by seed."""


class Points(Tabular, Swept):
    """One row per method and value of a config key, in the order of the values."""


class PaperRows(Tabular):
    """The rows of the table of this name in results/paper.yaml, next to our runs."""


class Find(Entry):
    """A number with n and interval, one sentence in the report; `claim` names the sentence of the paper it tests."""

    folder: ClassVar[str] = "findings"
    of: list[str] = []  # methods or conditions, the first minus the second; not given: nl and wd, of Swept all methods
    claim: str = ""
    headline: Annotated[str, AfterValidator(checked_headline)] = ""  # a sentence of README, with FACTS in braces


class Difference(Find):
    """The difference of a logged quantity at the end of training, paired by seed.

    within: the margin of two one-sided tests: equivalent, not equivalent or inconclusive.
    """

    y: str = "test_error"
    within: Annotated[float, Field(gt=0)] | None = None


class Early(Find):
    """A logged quantity before the first drop of lr: its mean over the epochs, or at the last one."""

    y: str = "train_ce"
    how: Literal["mean", "last"] = "mean"


class Time(Find):
    """The time of a run of the first, to that of the second, in percent; of runs that had one kind of device alone."""


class Range(Find, Swept):
    """The difference of the ranges over a config key, largest minus smallest, of each seed, paired by seed."""


class Each(Find, Swept):
    """The difference at each value of a config key, and at how many the first is lower."""


class Misset(Find, Swept):
    """The loss of each method by a value ten times larger or smaller than the one that the recipe gives."""


class Best(Find, Swept):
    """The value of a config key at which each method is best, and the difference with each at its best."""


ENTRIES: dict[str, dict[str, type[Entry]]] = {
    "plot": {"over": Over, "curves": Curves, "training": Training, "heatmap": Heatmap, "layers": Layers},
    "table": {"compare": Methods, "over": Points, "paper": PaperRows},
    "find": {
        "difference": Difference,
        "early": Early,
        "time": Time,
        "range": Range,
        "each": Each,
        "misset": Misset,
        "best": Best,
    },
}
