"""A tuning comparison of methods: the settings tried, the best one and why. torch-free, and free of Hydra.

Each method has the same number of trials, apart from learning rates beyond those tried (tuning.py). The best trial has
the lowest validation error of the last epoch, mean over its seeds; the test set never decides. Its setting is trained
anew with seeds that no trial had.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normloss.errors import UserError
from normloss.runs.files import not_writable, read_json, write_json

FOLDER = "comparisons"  # of a store: a file a tuning comparison
FACTS = ("words", "title", "held_out", "spaces")
Bounds = tuple[float, float]  # low, high
Space = dict[str, Bounds]  # of a key, log-uniform
Lookup = Callable[[str], tuple[str, dict[str, Any] | None]]  # by id: a run's state, and its final metrics if it is done


@dataclass(frozen=True)
class Run:
    """A run of a setting, and what came of it."""

    id: str
    seed: int
    state: str = "missing"  # in a store or an archive
    final: dict[str, Any] | None = None

    @property
    def ended(self) -> bool:
        return self.state in ("done", "diverged")


@dataclass(frozen=True)
class Trial:
    """A setting, which is a point of a method's space, with its runs."""

    values: dict[str, float]  # {"train.lr": 0.1, "reg.lam": 0.001}
    runs: list[Run]
    finals: list[Run]  # trained if it is the best

    def __str__(self) -> str:
        return " ".join(f"{key.rpartition('.')[2]}={value:g}" for key, value in self.values.items())

    @property
    def ended(self) -> bool:
        return all(run.ended for run in self.runs)

    @property
    def diverged(self) -> bool:
        return any(run.state == "diverged" for run in self.runs)

    @property
    def error(self) -> float | None:
        """The mean validation error of its runs in percent; None unless all are done."""
        return self.mean("val_error")

    def mean(self, key: str) -> float | None:
        values = [run.final[key] for run in self.runs if run.final]
        return sum(values) / len(values) if len(values) == len(self.runs) else None


@dataclass(frozen=True)
class MethodResult:
    """Results of a method's trials, and of the runs of the best one."""

    method: str
    trials: list[Trial]
    to_come: int  # trials that follow from results not there yet

    @property
    def complete(self) -> bool:
        return not self.to_come and all(trial.ended for trial in self.trials)

    @property
    def best(self) -> Trial | None:
        """The trial of lowest validation error; of equal ones the lower validation cross entropy, then the earlier.

        None before every trial has ended, and if all diverged.
        """
        done = [trial for trial in self.trials if trial.error is not None] if self.complete else []
        return min(done, key=lambda trial: (trial.error, trial.mean("val_ce")), default=None)

    @property
    def number(self) -> int | None:
        """The number of the best trial, from 1."""
        return self.trials.index(self.best) + 1 if self.best else None

    @property
    def finals(self) -> list[Run]:
        return self.best.finals if self.best else []

    @property
    def errors(self) -> dict[int, float]:
        """The test errors of the best setting by seed, as far as its runs are done."""
        return {run.seed: run.final["test_error"] for run in self.finals if run.final}

    @property
    def runs(self) -> list[Run]:
        """The runs known so far: of every trial, and those that are trained of the best setting."""
        return [*(run for trial in self.trials for run in trial.runs), *self.finals]

    @property
    def ended(self) -> int:
        """The number of runs that came to an end."""
        return sum(run.ended for run in self.runs)

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
        text = f"setting {self.number} of {count} has the lowest validation error, {self.best.error:.2f} %"
        text += f"; the next {min(others):.2f} %" if others else ""
        return text + (f"; {self.diverged} diverged" if self.diverged else "")


@dataclass(frozen=True)
class Tuning:
    """A tuning comparison as far as it is known. earlier: by a search that drew rate and λ together, all at once."""

    name: str
    words: list[str]  # of its command
    title: str  # digits resnet8, 20 epochs, batch size 64
    held_out: int | str  # dataset.val
    spaces: dict[str, Space]
    methods: dict[str, MethodResult]
    earlier: bool = False

    @property
    def command(self) -> str:
        return f"python train.py {shlex.join(self.words)}"


def look_up(store: Path, id: str) -> tuple[str, dict[str, Any] | None]:
    """Return a run's state in a store, and its final metrics if it is done."""
    if final := read_json(store / id / "DONE"):
        return "done", final
    return (read_json(store / id / "status.json") or {}).get("state", "missing"), None


# the file ----------------------------------------------------------------------------------------


def save(tuning: Tuning, store: Path) -> Path:
    """Write STORE/comparisons/NAME.json, the comparison with what came of each trial so far; return its path.

    A file of the earlier search is kept as NAME.1.json. Raises UserError for a store of another user.
    """
    record = {key: getattr(tuning, key) for key in FACTS} | {"name": tuning.name}
    record |= {"methods": {}, "to_come": {}, "outcome": {}}

    def listed(runs: list[Run]) -> list[dict[str, Any]]:
        return [{"id": run.id, "seed": run.seed, "state": run.state} for run in runs]

    for method, result in tuning.methods.items():
        record["methods"][method] = [
            {"values": one.values, "val_error": one.error, "trials": listed(one.runs), "finals": listed(one.finals)}
            for one in result.trials
        ]
        record["to_come"][method] = result.to_come
        record["outcome"][method] = {"chosen": result.number, "why": result.why}
    path = store / FOLDER / f"{tuning.name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if "to_come" not in (read_json(path) or record):
            path.rename(path.with_name(f"{tuning.name}.1.json"))
        write_json(path, record)
    except PermissionError as error:
        raise not_writable("store", path.parent, error) from None
    return path


def read(path: Path, lookup: Lookup) -> Tuning:
    """Read the file that `save` wrote, with the states of its runs; raises UserError for anything else."""
    record, methods = read_json(path) or {}, {}

    def runs(listed: list[dict[str, Any]]) -> list[Run]:
        return [Run(run["id"], run["seed"], *lookup(run["id"])) for run in listed]

    try:
        for method, planned in record["methods"].items():
            trials = [Trial(one["values"], runs(one["trials"]), runs(one["finals"])) for one in planned]
            methods[method] = MethodResult(method, trials, record.get("to_come", {}).get(method, 0))
        facts = {key: record[key] for key in FACTS}
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"{path}: must be a file that train.py compare=... wrote") from None
    return Tuning(path.stem, **facts, methods=methods, earlier="to_come" not in record)
