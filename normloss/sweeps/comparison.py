"""A tuning comparison of methods: the settings tried, the one chosen and why. torch-free, and free of Hydra.

Each method has the same number of settings, apart from learning rates beyond those tried (tuning.py). A setting is
chosen by its validation error of the last epoch, mean over its trials' seeds; the test set never decides. The chosen
setting is trained anew with seeds that no trial had.
"""

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from normloss.errors import UserError
from normloss.runs.files import read_json, write_json
from normloss.sweeps.spaces import Space

FOLDER = "comparisons"  # of a store: a file a comparison
RULE = (
    "lowest validation error of the last epoch, mean over the setting's trials; of equal ones the lower validation"
    " cross entropy, then the earlier; a setting with a diverged trial is never chosen"
)
ENDED = ("done", "diverged")


@dataclass(frozen=True)
class PlannedRun:
    """The id and seed of a run of a setting."""

    id: str
    seed: int


@dataclass(frozen=True)
class Setting:
    """A point of a method's space, with its runs."""

    values: dict[str, float]  # {"train.lr": 0.1, "reg.lam": 0.001}
    trials: list[PlannedRun]
    finals: list[PlannedRun]  # trained if it is chosen

    def __str__(self) -> str:
        return " ".join(f"{key.rpartition('.')[2]}={value:g}" for key, value in self.values.items())


@dataclass(frozen=True)
class Comparison:
    """A tuning comparison as far as it is known: settings of every method, the runs of each, settings to come.

    to_come: settings of each method that follow from results not there yet; empty for one of an earlier search, which
    drew rate and λ together, all at once.
    """

    name: str
    words: list[str]  # of its command
    title: str  # digits resnet8, 20 epochs, batch size 64
    held_out: int | str  # dataset.val
    spaces: dict[str, Space]
    methods: dict[str, list[Setting]]
    to_come: dict[str, int]

    @property
    def of_one_stage(self) -> bool:
        """Whether rate and λ were drawn together, by an earlier search."""
        return not self.to_come

    @property
    def command(self) -> str:
        return f"python train.py {' '.join(self.words)}"


@dataclass(frozen=True)
class RunState:
    """The state of a run in a store or an archive, with the final metrics of one that is done."""

    state: str = "missing"
    final: dict[str, Any] | None = None


Lookup = Callable[[str], RunState]


@dataclass(frozen=True)
class TriedSetting:
    """A setting, the states of its trials and their mean validation error."""

    number: int  # from 1
    setting: Setting
    states: list[str]
    error: float | None  # validation, in percent; None unless every trial is done
    ce: float | None

    @property
    def ended(self) -> bool:
        return all(state in ENDED for state in self.states)

    @property
    def diverged(self) -> bool:
        return "diverged" in self.states


@dataclass(frozen=True)
class Tuned:
    """A method's settings as far as they are tried."""

    method: str
    settings: list[TriedSetting]
    to_come: int  # settings that follow from results not there yet

    @property
    def complete(self) -> bool:
        return not self.to_come and all(judged.ended for judged in self.settings)

    @property
    def ended(self) -> int:
        """The number of trials that came to an end."""
        return sum(state in ENDED for judged in self.settings for state in judged.states)

    @property
    def diverged(self) -> int:
        """The number of settings that diverged."""
        return sum(judged.diverged for judged in self.settings)

    @property
    def chosen(self) -> TriedSetting | None:
        """The setting that RULE chooses; None before every trial has ended, and if all settings diverged."""
        return choose(self.settings) if self.complete else None

    @property
    def why(self) -> str:
        tried = len(self.settings) + self.to_come
        if not self.complete:
            return f"{sum(judged.ended for judged in self.settings)} of {tried} settings tried"
        best = self.chosen
        if best is None:
            return f"all {tried} settings diverged"
        others = sorted(judged.error for judged in self.settings if judged.error is not None and judged is not best)
        text = f"setting {best.number} of {tried} has the lowest validation error, {best.error:.2f} %"
        text += f"; the next {others[0]:.2f} %" if others else ""
        return text + (f"; {self.diverged} diverged" if self.diverged else "")


def choose(settings: list[TriedSetting]) -> TriedSetting | None:
    """Return the setting that RULE chooses of those whose trials are all done; None if there is none."""
    left = [judged for judged in settings if judged.error is not None]
    return min(left, key=lambda judged: (judged.error, judged.ce, judged.number), default=None)


def judge(comparison: Comparison, method: str, lookup: Lookup) -> Tuned:
    """Return a method's settings with what `lookup` has of their trials."""
    return Tuned(method, tried(comparison.methods[method], lookup), comparison.to_come.get(method, 0))


def tried(settings: list[Setting], lookup: Lookup) -> list[TriedSetting]:
    """Return settings with what `lookup` has of their trials."""
    found = []
    for number, setting in enumerate(settings, 1):
        seen = [lookup(run.id) for run in setting.trials]
        done = [one.final for one in seen if one.state == "done" and one.final]
        error, ce = (
            sum(final[key] for final in done) / len(done) if len(done) == len(seen) else None
            for key in ("val_error", "val_ce")
        )
        found.append(TriedSetting(number, setting, [one.state for one in seen], error, ce))
    return found


def lookup_in(store: Path) -> Lookup:
    """Return the function that reads a run's state from a store, by its id."""

    def lookup(id: str) -> RunState:
        final = read_json(store / id / "DONE")
        if final is not None:
            return RunState("done", final)
        status = read_json(store / id / "status.json")
        return RunState((status or {}).get("state", "missing"))

    return lookup


# the file ----------------------------------------------------------------------------------------


def save(comparison: Comparison, store: Path, lookup: Lookup) -> Path:
    """Write STORE/comparisons/NAME.json, the comparison with what came of each setting so far; return its path.

    A file of the earlier search is kept as NAME.1.json.
    """
    record = asdict(comparison) | {"rule": RULE, "outcome": {}}
    for method in comparison.methods:
        tuned = judge(comparison, method, lookup)
        best = tuned.chosen
        record["outcome"][method] = {
            "tried": [
                {"setting": judged.number, **judged.setting.values, "states": judged.states, "val_error": judged.error}
                for judged in tuned.settings
            ],
            "chosen": best and best.number,
            "why": tuned.why,
            "finals": [asdict(run) | {"state": lookup(run.id).state} for run in best.setting.finals] if best else [],
        }
    path = store / FOLDER / f"{comparison.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and read(path).of_one_stage:
        names = (path.with_name(f"{comparison.name}.{number}.json") for number in itertools.count(1))
        path.rename(next(name for name in names if not name.exists()))
    write_json(path, record)
    return path


def read(path: Path) -> Comparison:
    """Read the file that `save` wrote; raises UserError for anything else."""
    record = read_json(path) or {}
    try:
        methods = {
            method: [
                Setting(one["values"], *([PlannedRun(**run) for run in one[key]] for key in ("trials", "finals")))
                for one in settings
            ]
            for method, settings in record["methods"].items()
        }
        facts = {key: record[key] for key in ("words", "title", "held_out", "spaces")}
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"{path}: must be a file that train.py compare=... wrote") from None
    return Comparison(path.stem, **facts, methods=methods, to_come=record.get("to_come", {}))
