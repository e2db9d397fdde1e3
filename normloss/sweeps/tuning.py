"""Tuning: from `python train.py compare=nl,wd trials=8 seeds=5 ...` to the runs that it trains.

Method by method, in two stages. The larger half of the settings varies the learning rate at the authors' λ; as long as
the best rate is the lowest or highest of those tried, the next one beyond is tried too. The other half varies λ at the
best rate. A method without λ spends all settings on the rate. The chosen setting is trained with fresh seeds.

The runs follow from the words and the store alone, so that the command may be stopped and rerun at any time.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from normloss.config import Config, check, did_you_mean, run_id
from normloss.config.labels import counted
from normloss.config.plain import read_dict
from normloss.errors import Diverged, UserError
from normloss.runs.files import not_writable
from normloss.sweeps import spaces
from normloss.sweeps.comparison import (
    FOLDER,
    Comparison,
    Lookup,
    PlannedRun,
    RunState,
    Setting,
    choose,
    judge,
    lookup_in,
    save,
    tried,
)
from normloss.sweeps.composing import Planned, compositions, config_folders
from normloss.sweeps.launch import Local, launch
from normloss.sweeps.members import Entry
from normloss.sweeps.slurm import Settings

COUNTS = {"trials": 8, "seeds": 5, "trial_seeds": 1}  # settings per method, seeds of the chosen one, seeds per setting
OWN = ("compare", *COUNTS, "name")  # words that are no keys of a run's config
NOT_TRAINED = ("budget_minutes", "hydra", "restart", "device", "threads", "workers", "checkpoint_minutes", "wandb")


def asked(words: Sequence[str]) -> bool:
    """Return whether a command line asks for a comparison: compare=..., or an experiment with such a section.

    hydra.mode=RUN trains one run of an experiment, as it does for those that are sweeps.
    """
    if any(word.startswith("compare=") for word in words):
        return True
    return "hydra.mode=RUN" not in words and _section(words) is not None


def run(words: Sequence[str], how: Local | Settings) -> int:
    """Do a comparison's work or resume it; return the exit status: 0 also if trials diverged, which is an answer."""
    search = Search(words)
    status = launch(search.entries(), how)
    path = search.save()
    print(f"what was tried and chosen: {path}\nto read it: python scripts/rank.py {path}", flush=True)
    return 0 if status == Diverged.status and search.done else status


class Search:
    """A tuning comparison and its runs, each set on a copy of the method's composed config."""

    def __init__(self, words: Sequence[str]) -> None:
        given = {key: value for key, _, value in (word.partition("=") for word in words) if key in OWN}
        rest = [word for word in words if word.partition("=")[0] not in OWN]
        refuse_drawn(rest)
        section = _section(words) or {}
        self.counts = {key: _count(key, given.get(key, section.get(key, default))) for key, default in COUNTS.items()}
        methods = _methods(given.get("compare", section.get("methods", "all")))
        self.spaces = {method: spaces.space(method) for method in methods}
        self.bases = _compose(rest, methods)
        self.configs = {method: check(base).stored() for method, (_, base) in self.bases.items()}
        self.settings: dict[tuple[str, str], Setting] = {}  # by method and values
        self.plans: dict[str, tuple[str, Setting, int]] = {}  # by run id
        self.planned: dict[str, Planned] = {}  # what `run` made, by id
        cfg = check(self.bases[methods[0]][1])
        self.store = Path(cfg.store)
        self.facts: dict[str, Any] = {
            "words": [word for word in words if not word.startswith(NOT_TRAINED)],
            "title": _title(cfg),
            "held_out": cfg.dataset.val,
            "spaces": self.spaces,
        }
        self.name = _name(given.get("name"), rest) or f"{_label(cfg)}_{self._digest()}"

    def comparison(self, lookup: Lookup | None = None) -> Comparison:
        """Return the comparison as far as the runs of `lookup` (None: of the store) determine it."""
        lookup = lookup or lookup_in(self.store)
        methods, to_come = {}, {}
        for method in self.bases:
            methods[method], to_come[method] = self._known(method, lookup)
        return Comparison(self.name, **self.facts, methods=methods, to_come=to_come)

    def _known(self, method: str, lookup: Lookup) -> tuple[list[Setting], int]:
        """Return the settings of a method that are known, and how many follow once all of these have ended."""
        space, authors, trials = self.spaces[method], self.configs[method]["reg"]["lam"], self.counts["trials"]
        if "reg.lam" not in space:
            return [self._setting(method, {"train.lr": rate}) for rate in spaces.draw(space["train.lr"], trials)], 0
        of_lam = trials // 2
        rates = spaces.draw(space["train.lr"], trials - of_lam)
        while True:
            settings = [self._setting(method, {"train.lr": rate, "reg.lam": authors}) for rate in rates]
            seen = tried(settings, lookup)
            if not all(one.ended for one in seen):
                return settings, of_lam
            best = choose(seen)
            if best is None or not of_lam:
                return settings, 0
            rate = best.setting.values["train.lr"]
            further = spaces.beyond(space["train.lr"], rates, rate)
            if further is None:
                lams = [lam for lam in spaces.draw(space["reg.lam"], of_lam + 1) if lam != authors][:of_lam]
                return [*settings, *(self._setting(method, {"train.lr": rate, "reg.lam": lam}) for lam in lams)], 0
            rates.append(further)

    def _setting(self, method: str, values: dict[str, float]) -> Setting:
        key = method, str(values)
        if key not in self.settings:
            stored, trial_seeds = self.configs[method], self.counts["trial_seeds"]
            changed, first = _changed(stored["reg"], values), stored["seed"]
            seeds = range(first, first + trial_seeds + self.counts["seeds"])
            runs = [PlannedRun(_id(stored, changed, seed), seed) for seed in seeds]
            self.settings[key] = Setting(values, runs[:trial_seeds], runs[trial_seeds:])
            self.plans |= {run.id: (method, self.settings[key], run.seed) for run in runs}
        return self.settings[key]

    def _digest(self) -> str:
        """Return 8 hex digits of what is fixed before any result: first stage, spaces, counts."""
        first = {method: self._known(method, lambda id: RunState())[0] for method in self.bases}
        ids = [run.id for settings in first.values() for setting in settings for run in setting.trials]
        return hashlib.sha256(json.dumps([ids, self.spaces, self.counts]).encode()).hexdigest()[:8]

    def run(self, id: str) -> Planned:
        """Return a run's config and the words that choose it alone."""
        if id not in self.planned:
            method, setting, seed = self.plans[id]
            overrides, base = self.bases[method]
            raw = base.copy()
            changed = _changed(raw.reg, setting.values) | {"seed": seed}
            for key, value in changed.items():
                OmegaConf.update(raw, key, value)
            kept = [word for word in overrides if not word.startswith("seed=")]
            words = [*kept, *(f"{key}={_spelled(value)}" for key, value in changed.items())]
            self.planned[id] = Planned(check(raw), words)
        return self.planned[id]

    def entries(self) -> list[Entry]:
        """Return one entry per method: its trials, and the chosen setting's runs once there is one."""
        return [partial(self._save_and_list, method) for method in self.bases]

    def _save_and_list(self, method: str) -> list[Planned]:
        self.save()
        return self.runs(method)

    def runs(self, method: str | None = None) -> list[Planned]:
        """Return the runs known so far, of one method or all; trials that diverged are not tried again."""
        lookup = lookup_in(self.store)
        comparison, ids = self.comparison(lookup), []
        for one in [method] if method else comparison.methods:
            best = judge(comparison, one, lookup).chosen
            ids += [run.id for setting in comparison.methods[one] for run in setting.trials]
            ids += [run.id for run in best.setting.finals] if best else []
        return [self.run(id) for id in ids if lookup(id).state != "diverged"]

    @property
    def done(self) -> bool:
        """Whether every method's trials have ended and its chosen setting is trained."""
        lookup = lookup_in(self.store)
        comparison = self.comparison(lookup)
        tuned = [judge(comparison, method, lookup) for method in comparison.methods]
        finals = [run for one in tuned if one.chosen for run in one.chosen.setting.finals]
        return all(one.complete for one in tuned) and all(lookup(run.id).state == "done" for run in finals)

    def save(self) -> Path:
        """Write the comparison's file; return its path. Raises UserError for a store of another user."""
        lookup = lookup_in(self.store)
        try:
            return save(self.comparison(lookup), self.store, lookup)
        except PermissionError as error:
            raise not_writable("store", self.store / FOLDER, error) from None


def _section(words: Sequence[str]) -> dict[str, Any] | None:
    """Return the section `compare` of the experiment's file; None if there is none."""
    names = [word.removeprefix("experiment=") for word in words if word.startswith("experiment=")]
    if not names:
        return None
    files = [folder / "experiment" / f"{names[-1]}.yaml" for folder in config_folders(words)]
    found = next((file for file in files if file.is_file()), None)
    return read_dict(found).get("compare") if found else None


def _compose(words: list[str], methods: list[str]) -> dict[str, tuple[list[str], DictConfig]]:
    """Return each method's overrides and config, before anything is drawn."""
    found = compositions(["-m", *words, f"reg={','.join(methods)}"])
    if len(found) != len(methods):
        raise UserError(f"compare: takes one setting of everything else, got {len(found) // len(methods)}")
    for _, raw in found:
        if not raw.dataset.get("val"):
            raise UserError("dataset.val: must be given, since compare= chooses by images held out of training, got 0")
        if raw.train.lr_values is not None:
            raise UserError(f"compare: draws train.lr, train.lr_values must not be given, got {raw.train.lr_values}")
    return dict(zip(methods, found, strict=True))


def refuse_drawn(words: list[str]) -> None:
    """Raise UserError for a word that the comparison varies itself."""
    for word in words:
        key = word.partition("=")[0].lstrip("+")
        if key in ("reg", "train.lr", "reg.lam"):
            instead = "compare=METHOD,... names the methods" if key == "reg" else "configs/search says from where"
            raise UserError(f"{word}: is drawn by the comparison; {instead}")


def _methods(text: str | list[str]) -> list[str]:
    there = spaces.methods()
    if text == "all":
        return [name for name in there if name not in spaces.variants()]
    names = list(dict.fromkeys(str(text).strip("[]").replace(" ", "").split(","))) if isinstance(text, str) else text
    for name in names:
        if name not in there:
            raise UserError(f"compare: must be all or some of {' '.join(there)}, got {name!r}{_near(name, there)}")
    return list(names)


def _near(name: str, there: list[str]) -> str:
    near = did_you_mean(name, there)
    return near if "did you mean" in near else ""


def _count(key: str, value: Any) -> int:
    if not str(value).isdecimal() or int(value) < 1:
        raise UserError(f"{key}: must be a whole number of at least 1, got {value!r}")
    return int(value)


def _changed(reg: Any, values: dict[str, float]) -> dict[str, Any]:
    """Return the keys that a setting changes; a schedule of λ is scaled along with λ."""
    schedule = reg.get("lam_values")
    if schedule is None or "reg.lam" not in values or values["reg.lam"] == reg["lam"]:
        return dict(values)
    factor = values["reg.lam"] / reg["lam"]
    return values | {"reg.lam_values": [float(f"{one * factor:.{spaces.DIGITS}g}") for one in schedule]}


def _id(stored: dict[str, Any], changed: dict[str, Any], seed: int) -> str:
    """Return the id of the run whose config is `stored` with these keys changed."""
    copy = {**stored, "seed": seed}
    for key, value in changed.items():
        section, _, name = key.partition(".")
        copy[section] = {**copy[section], name: value}
    return run_id(copy)


def _spelled(value: Any) -> str:
    return f"[{','.join(map(repr, value))}]" if isinstance(value, list) else repr(value)


def _title(cfg: Config) -> str:
    length = counted(cfg.train.max_steps, "step") if cfg.train.max_steps else counted(cfg.train.epochs, "epoch")
    name = getattr(cfg.dataset, "label", cfg.dataset.name)
    return f"{name} {cfg.model.name}, {length}, batch size {cfg.train.batch_size}"


def _label(cfg: Config) -> str:
    return f"{Path(getattr(cfg.dataset, 'label', cfg.dataset.name)).name}_{cfg.model.name}"


def _name(given: str | None, rest: list[str]) -> str | None:
    """Return the name given, else the experiment's; None if there is neither."""
    if given is not None and (not given or given != Path(given).name or given.startswith(".")):
        raise UserError(f"name: must be a file's name without a folder, got {given!r}")
    return given or next((word.removeprefix("experiment=") for word in rest if word.startswith("experiment=")), None)
