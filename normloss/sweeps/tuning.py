"""Tuning: from `python train.py compare=nl,wd trials=8 seeds=5 ...` to the runs that it trains.

Method by method, in two stages. The larger half of the trials varies the learning rate at the authors' λ; as long as
the best rate is the lowest or highest of those tried, the next one beyond is tried too. The other half varies λ at the
best rate. A method without λ spends all trials on the rate. The best setting is trained with fresh seeds.

A space, of configs/search.yaml, is drawn from by a quasi-random sequence. Only the values drawn reach a run's config.

The runs follow from the words and the store alone, so that the command may be stopped and rerun at any time.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from normloss.config import CONFIGS, Reg, did_you_mean, reg_files
from normloss.config.labels import counted
from normloss.config.plain import read_dict
from normloss.errors import UserError
from normloss.sweeps.command_line import Entry, Planned, compositions, parse
from normloss.sweeps.refusals import OF_TUNING, one_line
from normloss.sweeps.trials import Bounds, Lookup, MethodResult, Run, Space, Trial, Tuning, look_up, save

COUNTS = {"trials": 8, "seeds": 5, "trial_seeds": 1}  # settings per method, seeds of the best one, seeds per trial
DIGITS = 4  # significant, of a value drawn: ids stay the same whatever the last bit of a machine's logarithm
MOST = 1023  # points of the sequence; a later one beyond all of these is within a thousandth of the range's end
OWN = ("compare", *OF_TUNING)
NOT_TRAINED = ("budget_minutes", "hydra", "restart", "device", "threads", "workers", "checkpoint_minutes", "wandb")


def asked(words: Sequence[str]) -> bool:
    """Return whether a command line asks for a tuning comparison: compare=..., or an experiment with such a section.

    hydra.mode=RUN trains one run of an experiment, as it does for those that are sweeps.
    """
    given = any(word.startswith("compare=") for word in words)
    return given or ("hydra.mode=RUN" not in words and _section(words) is not None)


class Search:
    """The search of a tuning comparison, and its runs: copies of each method's composed config."""

    def __init__(self, words: Sequence[str]) -> None:
        given = {key: value for key, _, value in (word.partition("=") for word in words) if key in OWN}
        rest = [word for word in words if word.partition("=")[0] not in OWN]
        section = _section(words) or {}
        self.counts = {key: _count(key, given.get(key, section.get(key, default))) for key, default in COUNTS.items()}
        methods = _methods(given.get("compare", section.get("methods", "all")))
        self.spaces = {method: space_of(method) for method in methods}
        self.bases = _compose(rest, methods)
        self.planned: dict[str, Planned] = {}  # the runs that it has been asked for so far, by id
        cfg = self.bases[methods[0]].cfg
        self.store = Path(cfg.store)
        length = counted(cfg.train.max_steps, "step") if cfg.train.max_steps else counted(cfg.train.epochs, "epoch")
        label = getattr(cfg.dataset, "label", cfg.dataset.name)
        self.facts: dict[str, Any] = {
            "words": [word for word in words if not word.startswith(NOT_TRAINED)],
            "title": f"{label} {cfg.model.name}, {length}, batch size {cfg.train.batch_size}",
            "held_out": cfg.dataset.val,
            "spaces": self.spaces,
        }
        first = [trial for method in methods for trial in self.result(method, lambda id: ("missing", None)).trials]
        fixed = [[run.id for trial in first for run in trial.runs], self.spaces, self.counts]  # before any result
        digest = hashlib.sha256(json.dumps(fixed).encode()).hexdigest()[:8]
        own = [given["name"]] if "name" in given else _experiments(rest)
        self.name = own[-1] if own else f"{Path(label).name}_{cfg.model.name}_{digest}"
        if not self.name or self.name != Path(self.name).name or self.name.startswith("."):
            raise UserError(f"name: must be a file's name without a folder, got {self.name!r}")

    def tuning(self, lookup: Lookup) -> Tuning:
        """Return the comparison as far as these runs determine it."""
        return Tuning(self.name, **self.facts, methods={method: self.result(method, lookup) for method in self.bases})

    def result(self, method: str, lookup: Lookup) -> MethodResult:
        """Return a method's trials as far as these runs determine them."""
        space, authors, count = self.spaces[method], self.bases[method].cfg.reg.lam, self.counts["trials"]
        of_lam = count // 2 if "reg.lam" in space else 0
        rates = draw(space["train.lr"], count - of_lam)
        at = {"reg.lam": authors} if "reg.lam" in space else {}
        while True:
            first = [self._trial(method, {"train.lr": rate} | at, lookup) for rate in rates]
            found = MethodResult(method, first, 0)
            if not found.complete:
                return MethodResult(method, first, of_lam)
            if not of_lam or not found.best:
                return found
            rate = found.best.values["train.lr"]
            further = beyond(space["train.lr"], rates, rate)
            if further is None:
                break
            rates.append(further)
        lams = [lam for lam in draw(space["reg.lam"], of_lam + 1) if lam != authors][:of_lam]
        second = [self._trial(method, {"train.lr": rate, "reg.lam": lam}, lookup) for lam in lams]
        return MethodResult(method, [*first, *second], 0)

    def _trial(self, method: str, values: dict[str, float], lookup: Lookup) -> Trial:
        cfg, words = self.bases[method]
        of_reg, runs = _of_reg(cfg.reg, values), []
        train = cfg.train.model_copy(update={"lr": values["train.lr"]})
        reg = cfg.reg.model_copy(update=of_reg)
        changed = {"train.lr": train.lr} | {f"reg.{name}": value for name, value in of_reg.items()}
        for seed in range(cfg.seed, cfg.seed + self.counts["trial_seeds"] + self.counts["seeds"]):
            copy = cfg.model_copy(update={"train": train, "reg": reg, "seed": seed})
            own = [f"{name}={value}".replace(" ", "") for name, value in {**changed, "seed": seed}.items()]
            id = copy.id  # a hash of the config
            self.planned[id] = Planned(copy, [*words, *own])
            runs.append(Run(id, seed, *lookup(id)))
        return Trial(values, runs[: self.counts["trial_seeds"]], runs[self.counts["trial_seeds"] :])

    def entries(self) -> list[Entry]:
        """Return one entry per method: its trials, and the best setting's runs once there is one."""

        def saved_and_listed(method: str) -> list[Planned]:
            self.save()
            return self.runs(method)

        return [partial(saved_and_listed, method) for method in self.bases]

    def runs(self, *methods: str) -> list[Planned]:
        """Return the runs known so far, of some methods or all; trials that diverged are not tried again."""
        results = [self.result(method, partial(look_up, self.store)) for method in methods or self.bases]
        return [self.planned[run.id] for one in results for run in one.runs if run.state != "diverged"]

    def save(self) -> Path:
        """Write the comparison's file; return its path."""
        return save(self.tuning(partial(look_up, self.store)), self.store)


def _experiments(words: Sequence[str]) -> list[str]:
    return [word.removeprefix("experiment=") for word in words if word.startswith("experiment=")]


def _section(words: Sequence[str]) -> dict[str, Any] | None:
    """Return the section `compare` of the experiment's file; None if there is none."""
    options = parse(words)
    for name in _experiments(words)[-1:]:
        for folder in filter(None, (options.config_path, options.config_dir, CONFIGS)):
            if (file := Path(folder, "experiment", f"{name}.yaml")).is_file():
                with one_line():
                    section = read_dict(file).get("compare")
                    return None if section is None else dict(section)
    return None


def _compose(words: list[str], methods: list[str]) -> dict[str, Planned]:
    """Return each method's config and words, before anything is drawn; raises UserError for what cannot be tuned."""
    for word in words:
        key = word.partition("=")[0].lstrip("+")
        if key in ("reg", "train.lr", "reg.lam"):
            instead = "compare=METHOD,... names the methods" if key == "reg" else "configs/search.yaml has its range"
            raise UserError(f"{word}: is drawn by the comparison; {instead}")
    found = compositions(["-m", *words, f"reg={','.join(methods)}"])
    if len(found) != len(methods):
        raise UserError(f"compare: needs one value per other key, got {len(found) // len(methods)} combinations")
    for cfg, _ in found:
        if not cfg.dataset.val:
            raise UserError("dataset.val: must be given, since compare= chooses by images held out of training, got 0")
        if cfg.train.lr_values is not None:
            raise UserError(f"compare: draws train.lr, train.lr_values must not be given, got {cfg.train.lr_values}")
    return dict(zip(methods, found, strict=True))


def _methods(given: str | list[str]) -> list[str]:
    there = all_methods()
    if given == "all":
        return all_methods(variants=False)
    names = str(given).strip("[]").replace(" ", "").split(",") if isinstance(given, str) else given
    for name in names:
        if name not in there:
            near = did_you_mean(name, there).partition("; there are")[0]
            raise UserError(f"compare: must be all or some of {' '.join(there)}, got {name!r}{near}")
    return list(dict.fromkeys(names))


def _count(key: str, value: Any) -> int:
    if not str(value).isdecimal() or int(value) < 1:
        raise UserError(f"{key}: must be a whole number of at least 1, got {value!r}")
    return int(value)


def _of_reg(reg: Reg, values: dict[str, float]) -> dict[str, Any]:
    """Return the keys of reg that a setting changes; a schedule of λ is scaled along with λ."""
    if "reg.lam" not in values:
        return {}
    factor = values["reg.lam"] / reg.lam
    if reg.lam_values is None or factor == 1:
        return {"lam": values["reg.lam"]}
    scaled = [float(f"{lam * factor:.{DIGITS}g}") for lam in reg.lam_values]
    return {"lam": values["reg.lam"], "lam_values": scaled}


# spaces ------------------------------------------------------------------------------------------


def all_methods(variants: bool = True) -> list[str]:
    """Return the names of configs/reg: baselines and norm loss first. variants: also other settings of a method."""
    first = ["none", "wd", "nl"]
    found = {name for name, file in reg_files().items() if variants or file["name"] == name}
    return [*first, *sorted(found.difference(first))]


def space_of(method: str) -> Space:
    """Return the range of train.lr and, for a method with λ, of reg.lam; raises UserError for a method without one."""
    ranges = read_dict(CONFIGS / "search.yaml")
    found = {"train.lr": ranges["train.lr"]}
    if "lam" in reg_files()[method]:
        if method not in ranges["reg.lam"]:
            raise UserError(f"configs/search.yaml: must have a range of reg.lam for {method}")
        found["reg.lam"] = ranges["reg.lam"][method]
    return {key: (bounds["low"], bounds["high"]) for key, bounds in found.items()}


def draw(bounds: Bounds, count: int) -> list[float]:
    """Return points 1 to `count` of the Halton sequence of base 2 laid over a range; more keep those drawn before."""
    from scipy.stats.qmc import Halton

    low, high = bounds
    sequence = Halton(d=1, scramble=False)
    sequence.fast_forward(1)  # point 0 is the lower bound
    return [float(f"{low * (high / low) ** share:.{DIGITS}g}") for (share,) in sequence.random(count)]


def beyond(bounds: Bounds, tried: Sequence[float], best: float) -> float | None:
    """Return the next point of the sequence outside the values tried, on the side where `best` is the last of them.

    None if `best` lies between others, or the range ends there.
    """
    lowest, highest = best == min(tried), best == max(tried)
    points = draw(bounds, MOST) if lowest or highest else []
    return next((value for value in points if (lowest and value < best) or (highest and value > best)), None)
