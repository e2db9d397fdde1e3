"""A tuning comparison of methods: the settings tried, the best one and why. torch-free, and free of Hydra.

Each method has the same number of trials, apart from learning rates beyond those tried (tuning.py). The best trial has
the lowest validation error of the last epoch, mean over its seeds; the test set never decides. Its setting is trained
anew with seeds that no trial had.
"""

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from normloss.errors import UserError
from normloss.runs.files import read_json, write_json
from normloss.sweeps.spaces import Space

FOLDER = "comparisons"  # of a store: a file a tuning comparison
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
class Trial:
    """A setting, which is a point of a method's space, with its runs."""

    values: dict[str, float]  # {"train.lr": 0.1, "reg.lam": 0.001}
    runs: list[PlannedRun]
    finals: list[PlannedRun]  # trained if it is the best

    def __str__(self) -> str:
        return " ".join(f"{key.rpartition('.')[2]}={value:g}" for key, value in self.values.items())


@dataclass(frozen=True)
class RunState:
    """The state of a run in a store or an archive, with the final metrics of one that is done."""

    state: str = "missing"
    final: dict[str, Any] | None = None


Lookup = Callable[[str], RunState]  # by id


@dataclass(frozen=True)
class TrialResult:
    """A trial, the states of its runs and their mean validation error."""

    number: int  # from 1
    trial: Trial
    states: list[str]
    error: float | None  # validation, in percent; None unless every run is done
    ce: float | None

    @property
    def ended(self) -> bool:
        return all(state in ENDED for state in self.states)

    @property
    def diverged(self) -> bool:
        return "diverged" in self.states


@dataclass(frozen=True)
class MethodResult:
    """What came of a method's trials, and of the runs of the best one."""

    method: str
    trials: list[TrialResult]
    to_come: int  # trials that follow from results not there yet
    complete: bool  # whether every trial has ended
    best: TrialResult | None  # None before, and if all diverged
    finals: dict[int, RunState]  # of the best, by seed

    @property
    def errors(self) -> dict[int, float]:
        """The test errors of the best trial's setting by seed, as far as its runs are done."""
        return {seed: run.final["test_error"] for seed, run in self.finals.items() if run.state == "done" and run.final}

    @property
    def ended(self) -> int:
        """The number of runs that came to an end."""
        states = [state for trial in self.trials for state in trial.states]
        return sum(state in ENDED for state in [*states, *(run.state for run in self.finals.values())])

    @property
    def diverged(self) -> int:
        """The number of trials that diverged."""
        return sum(trial.diverged for trial in self.trials)

    @property
    def why(self) -> str:
        count = len(self.trials) + self.to_come
        if not self.complete:
            return f"{sum(trial.ended for trial in self.trials)} of {count} settings tried"
        if self.best is None:
            return f"all {count} settings diverged"
        others = [trial.error for trial in self.trials if trial.error is not None and trial is not self.best]
        text = f"setting {self.best.number} of {count} has the lowest validation error, {self.best.error:.2f} %"
        text += f"; the next {min(others):.2f} %" if others else ""
        return text + (f"; {self.diverged} diverged" if self.diverged else "")


@dataclass(frozen=True)
class Tuning:
    """A tuning comparison as far as it is known: trials of every method, their runs, and how many trials are to come.

    to_come: trials of each method that follow from results not there yet; empty for one of an earlier search, which
    drew rate and λ together, all at once.
    """

    name: str
    words: list[str]  # of its command
    title: str  # digits resnet8, 20 epochs, batch size 64
    held_out: int | str  # dataset.val
    spaces: dict[str, Space]
    methods: dict[str, list[Trial]]
    to_come: dict[str, int]

    @property
    def of_one_stage(self) -> bool:
        """Whether rate and λ were drawn together, by an earlier search."""
        return not self.to_come

    @property
    def command(self) -> str:
        return f"python train.py {' '.join(self.words)}"

    def result(self, method: str, lookup: Lookup) -> MethodResult:
        """Return what came of a method, by the states of its runs."""
        trials, to_come = results(self.methods[method], lookup), self.to_come.get(method, 0)
        complete = not to_come and all(trial.ended for trial in trials)
        found = best(trials) if complete else None
        finals = {run.seed: lookup(run.id) for run in found.trial.finals} if found else {}
        return MethodResult(method, trials, to_come, complete, found, finals)

    def results(self, lookup: Lookup) -> list[MethodResult]:
        return [self.result(method, lookup) for method in self.methods]


def results(trials: list[Trial], lookup: Lookup) -> list[TrialResult]:
    """Return what came of trials, by the states of their runs."""
    found = []
    for number, trial in enumerate(trials, 1):
        seen = [lookup(run.id) for run in trial.runs]
        done = [one.final for one in seen if one.state == "done" and one.final]
        error, ce = (
            sum(final[key] for final in done) / len(done) if len(done) == len(seen) else None
            for key in ("val_error", "val_ce")
        )
        found.append(TrialResult(number, trial, [one.state for one in seen], error, ce))
    return found


def best(trials: list[TrialResult]) -> TrialResult | None:
    """Return the trial that RULE chooses of those whose runs are all done; None if there is none."""
    left = [trial for trial in trials if trial.error is not None]
    return min(left, key=lambda trial: (trial.error, trial.ce, trial.number), default=None)


def lookup_in(store: Path) -> Lookup:
    """Return the function that reads a run's state from a store, by its id."""

    def lookup(id: str) -> RunState:
        final = read_json(store / id / "DONE")
        if final is not None:
            return RunState("done", final)
        return RunState((read_json(store / id / "status.json") or {}).get("state", "missing"))

    return lookup


# the file ----------------------------------------------------------------------------------------


def save(tuning: Tuning, store: Path, lookup: Lookup) -> Path:
    """Write STORE/comparisons/NAME.json, the comparison with what came of each trial so far; return its path.

    A file of the earlier search is kept as NAME.1.json.
    """
    record = asdict(tuning) | {"rule": RULE, "outcome": {}}
    for trial in itertools.chain(*record["methods"].values()):
        trial["trials"] = trial.pop("runs")
    for result in tuning.results(lookup):
        finals = result.best.trial.finals if result.best else []
        record["outcome"][result.method] = {
            "tried": [
                {"setting": one.number, **one.trial.values, "states": one.states, "val_error": one.error}
                for one in result.trials
            ],
            "chosen": result.best and result.best.number,
            "why": result.why,
            "finals": [asdict(run) | {"state": result.finals[run.seed].state} for run in finals],
        }
    path = store / FOLDER / f"{tuning.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and read(path).of_one_stage:
        names = (path.with_name(f"{tuning.name}.{number}.json") for number in itertools.count(1))
        path.rename(next(name for name in names if not name.exists()))
    write_json(path, record)
    return path


def read(path: Path) -> Tuning:
    """Read the file that `save` wrote; raises UserError for anything else."""
    record = read_json(path) or {}
    try:
        methods = {
            method: [
                Trial(one["values"], *([PlannedRun(**run) for run in one[key]] for key in ("trials", "finals")))
                for one in trials
            ]
            for method, trials in record["methods"].items()
        }
        facts = {key: record[key] for key in ("words", "title", "held_out", "spaces")}
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"{path}: must be a file that train.py compare=... wrote") from None
    return Tuning(path.stem, **facts, methods=methods, to_come=record.get("to_come", {}))
