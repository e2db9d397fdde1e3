"""An experiment's file: what it sweeps, what is asked, and what is drawn of its runs.

    study:
      title: Test error of ResNet8 over λ
      question: Does λ move norm loss's test error less than weight decay's?
      show:
        - {plot: over, x: reg.lam}
        - {find: range, x: reg.lam}

The key `study` of configs/experiment/NAME.yaml is no part of a run's config or identity. docs/experiments.md lists the
kinds of plots, tables and findings and their keys; a wrong key is refused in words when the file is read.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from pydantic import BaseModel, ConfigDict, ValidationError

from normloss.analysis import select
from normloss.analysis.kinds import KINDS, Find, Shown
from normloss.config import CONFIGS, Cifar10, Config, Folder, ImageNet, Reg, Train, check, did_you_mean
from normloss.config.labels import reg_files
from normloss.config.plain import read_dict
from normloss.config.schema import ResNetCifar, WideResNet
from normloss.errors import UserError
from normloss.sweeps.composing import compositions

GROUPS = ("dataset", "model", "reg", "recipe")  # chosen by the name of a file
NAMED = GROUPS[:3]  # of which a run's config holds the name


class Beside(BaseModel):
    """Runs of another experiment that are shown too."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    experiment: str
    where: dict[str, Any] = {}


class Section(BaseModel):
    """The key `study` of an experiment's file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    title: str
    question: str = ""
    beside: list[Beside] = []
    show: list[dict[str, Any]] = []
    rank: int = 100  # the report shows the lowest first
    local: bool = False  # its runs are this machine's alone: in report.html, in nothing that git keeps


@dataclass(frozen=True)
class Study:
    """An experiment's file, read."""

    name: str
    title: str
    question: str
    sweep: dict[str, list[str]]  # what each swept key takes, as on the command line
    fixed: dict[str, str]  # dataset and model where the file chooses them
    show: list[Shown]
    beside: list[Beside] = field(default_factory=list)
    rank: int = 100
    local: bool = False

    @property
    def command(self) -> str:
        return f"python train.py experiment={self.name}"

    @cached_property
    def configs(self) -> list[Config]:
        """Of every run that train.py experiment=NAME trains. A composition takes Hydra some tenths of a second: one a
        choice of groups, whose other values are then set."""
        values = {key: swept for key, swept in self.sweep.items() if key not in GROUPS}
        first = [f"{key}={swept[0]}" for key, swept in values.items()]
        parser, configs = OverridesParser.create(), []
        for _, raw in compositions([f"experiment={self.name}", *first]):
            for words in itertools.product(*([f"{key}={one}" for one in swept] for key, swept in values.items())):
                configs.append(_with_values(raw, parser.parse_overrides([*words])))
        return configs

    @property
    def size(self) -> int:
        size = 1
        for values in self.sweep.values():
            size *= len(values)
        return size

    def runs(self, df: pd.DataFrame) -> pd.DataFrame:
        """Those of `df` that differ from a run of the sweep by seed alone, or by TF32 (D21), whatever started them."""
        choices = {key: self.sweep.get(key, [self.fixed[key]] if key in self.fixed else []) for key in NAMED[:2]}
        for key, names in choices.items():
            if names and len(df):  # nothing is composed where no run can be one of the sweep's
                df = df[df[f"{key}.name"].isin(names)]
        return select.one_precision(df[df["place"].isin({cfg.place for cfg in self.configs})]) if len(df) else df

    def missing(self, df: pd.DataFrame) -> int:
        """How many runs of the sweep are not done."""
        mine = select.done(self.runs(df))
        there = set(zip(mine["place"], mine["seed"], strict=True))
        return self.size - sum((cfg.place, cfg.seed) in there for cfg in self.configs) if there else self.size


def _with_values(raw: DictConfig, overrides: list) -> Config:
    raw = raw.copy()
    with open_dict(raw):
        raw.pop("hydra", None)
    for override in overrides:
        OmegaConf.update(raw, override.key_or_group, override.value())
    return check(raw)


# reading -----------------------------------------------------------------------------------------


def read_studies(folder: Path = CONFIGS / "experiment") -> dict[str, Study]:
    """Every experiment's file of a folder, in the order of a report; a comparison's is for `python scripts/rank.py`."""
    studies = [read_study(path) for path in sorted(folder.glob("*.yaml")) if "compare" not in OmegaConf.load(path)]
    places: dict[tuple[str, str], str] = {}
    for study in studies:
        for each in study.show:
            taken = places.setdefault((each.folder, each.name), study.name)
            if not isinstance(each, Find) and taken != study.name:
                raise UserError(f"{study.name}.yaml: {each.folder}/{each.name} is made by {taken}.yaml too: name it")
    return {study.name: study for study in sorted(studies, key=lambda study: (study.rank, study.name))}


def read_study(file: Path) -> Study:
    """Raises UserError in one line for what cannot be drawn."""
    raw = read_dict(file)
    sweep = {key: _values(str(value)) for key, value in _inner(raw, "hydra", "sweeper", "params").items()}
    fixed = {}
    for default in raw.get("defaults", []):
        for key, value in default.items() if isinstance(default, dict) else ():
            fixed[key.removeprefix("override ").removeprefix("/")] = value
    section = raw.get("study") or {"title": file.stem, "show": _usual(sweep)}
    study = _validate(Section, section, f"{file.name}: study")
    show, named = [], set()
    for i, entry in enumerate(study.show):
        shown = _read_shown(entry, f"{file.name}: study.show[{i}]", file.stem, study.title)
        if not isinstance(shown, Find):
            if (shown.folder, shown.name) in named:
                raise UserError(f"{file.name}: study.show[{i}]: {shown.folder}/{shown.name} is made before: name it")
            named.add((shown.folder, shown.name))
        show.append(shown)
    given = study.model_dump(include={"title", "question", "rank", "local"})
    beside = [each.model_copy(update={"where": conditions_of(each.where)}) for each in study.beside]
    return Study(name=file.stem, sweep=sweep, fixed=fixed, show=show, beside=beside, **given)


def _inner(raw: Any, *keys: str) -> dict[str, Any]:
    for key in keys:
        raw = (raw or {}).get(key) or {}
    return raw


def _values(text: str) -> list[str]:
    """ "range(0,3)" -> 0 1 2, "wd,nl" -> wd nl, as Hydra's sweeper reads them."""
    (override,) = OverridesParser.create().parse_overrides([f"key={text}"])
    return list(override.sweep_string_iterator()) if override.is_sweep_override() else [text]


def _usual(sweep: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """What is drawn of a sweep whose file does not say."""
    own = [key for key in sweep if key not in (*GROUPS, "seed")]
    over = [key for key in own if all(map(_is_number, sweep[key]))]
    by = [f"{key}.name" for key in NAMED[:2] if len(sweep.get(key, [])) > 1]
    by += [key for key in own if key not in over and not key.startswith("reg.")]
    shown: list[dict[str, Any]] = [{"plot": "training"}, {"table": "compare"}]
    if len(over) == 1:
        shown = [{"plot": "over", "x": over[0]}, {"table": "over", "x": over[0]}]
    elif len(over) == 2:
        shown = [{"plot": "heatmap", "x": over[0], "y": over[1]}]
    elif over:
        by += [key for key in over if not key.startswith("reg.")]
    return [{**each, "by": by} for each in shown]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_shown(entry: Mapping[str, Any], place: str, name: str, title: str) -> Shown:
    what = [key for key in KINDS if key in entry]
    if len(what) != 1:
        raise UserError(f"{place}: must have one of the keys {', '.join(KINDS)}, got {', '.join(entry) or 'none'}")
    kinds, kind = KINDS[what[0]], entry[what[0]]
    if kind not in kinds:
        raise UserError(f"{place}.{what[0]}: must be one of {' '.join(kinds)}, got {kind!r}")
    rest = {key: value for key, value in entry.items() if key != what[0]}
    shown = _validate(kinds[kind], {"name": name, "title": title} | rest, place)
    shown = shown.model_copy(update={"where": conditions_of(shown.where)})
    axes = [getattr(shown, key) for key in ("x", "y") if key in kinds[kind].AXES]
    for key in (*shown.where, *shown.by, *axes):
        check_key(key, place)
    return shown


def _validate(model: type[BaseModel], values: Any, place: str) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # a key that is wrong is the reason why another one is missing
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    keys = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        known = [key for key in model.model_fields if key != "folder"]
        raise UserError(f"{place}.{keys[-1]}: no such key{did_you_mean(keys[-1], known)}")
    if first["type"] == "missing":
        raise UserError(f"{place}.{'.'.join(keys)}: must be given")
    got = "" if isinstance(first["input"], dict) else f", got {first['input']!r}"
    raise UserError(f"{place}.{'.'.join(keys)}: {first['msg'].replace('Input should be', 'must be')}{got}")


def check_key(key: str, place: str) -> None:
    """Refuses what is no key of any run's config, in words."""
    section, _, inner = key.partition(".")
    known = {
        "dataset": {*Cifar10.model_fields, *Folder.model_fields, *ImageNet.model_fields},
        "model": {*ResNetCifar.model_fields, *WideResNet.model_fields},
        "reg": {*Reg.model_fields, *(name for file in reg_files().values() for name in file)},
        "train": {*Train.model_fields},
    }
    if key != "seed" and inner not in known.get(section, ()):
        there = [f"{section}.{name}" for name in sorted(known.get(section, ()))] or [*known, "seed"]
        raise UserError(f"{place}: {key}: no such key of a run's config{did_you_mean(key, there)}")


# conditions --------------------------------------------------------------------------------------


def conditions_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"model": "wrn28_10"} -> {"model.name": ["wrn28_10"]}: groups are chosen by name, of several values any."""
    rows = {key: value if isinstance(value, list) else [value] for key, value in values.items()}
    return {f"{key}.name" if key in NAMED else key: [select.as_cell(one) for one in row] for key, row in rows.items()}


def read_conditions(words: list[str]) -> dict[str, list]:
    """["reg=wd,nl", "seed=0"] -> {"reg.name": ["wd", "nl"], "seed": [0]}: any of these, in train.py's grammar."""
    try:
        overrides = OverridesParser.create().parse_overrides(words)
        values = [list(o.sweep_iterator()) if o.is_sweep_override() else [o.value()] for o in overrides]
    except HydraException as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{' '.join(words)}: must be key=value ..., like dataset=digits reg=wd,nl ({reason})") from None
    named: dict[str, list] = dict(zip((o.key_or_group for o in overrides), values, strict=True))
    for word in words:
        if word.startswith("dataset.label="):  # a folder's name, though Hydra reads 1e3 as a number and null as nothing
            named["dataset.label"] = re.sub("[\"']", "", word.partition("=")[2]).split(",")
    return conditions_of(named)


def side(df: pd.DataFrame, words: str) -> pd.DataFrame:
    """The runs of one side of a comparison: "nl", or conditions such as "reg=nl reg.lam_gamma=0.1"."""
    conditions = read_conditions([word if "=" in word else f"reg={word}" for word in words.split()])
    return select.where(df, conditions)
