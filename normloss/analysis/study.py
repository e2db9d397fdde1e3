"""An experiment's file: what it sweeps, what is asked, and what is shown of its runs.

    study:
      title: Test error of ResNet8 over λ
      question: Does λ move norm loss's test error less than weight decay's?
      show:
        - {plot: over, x: reg.lam}
        - {find: range, x: reg.lam}

The key `study` of configs/experiment/NAME.yaml is no part of a run's config or identity. docs/experiments.md lists the
plots, tables and findings and their keys; a wrong key raises UserError when the file is read.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict

from normloss.analysis import select
from normloss.analysis.entries import ENTRIES, NAMED, Entry, Find, Swept, Where, conditions_of
from normloss.config import CONFIGS, TRAINED, Config, checked, did_you_mean, reg_files, section_keys
from normloss.config.plain import read_dict
from normloss.errors import UserError
from normloss.sweeps.composing import expand

GROUPS = (*NAMED, "recipe")  # chosen by the name of a file
BASELINES = ("wd", "none")  # what methods are compared to, in this order


class Borrowed(BaseModel):
    """Runs of another experiment that are shown too: an item of `beside`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    experiment: str
    where: Where = {}


class Section(BaseModel):
    """The key `study` of an experiment's file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    title: str
    question: str = ""
    beside: list[Borrowed] = []
    show: list[dict[str, Any]] = []
    limits: list[str] = []  # sentences that stand with its findings
    precision: Literal["any", "own"] = "any"  # own: no runs in TF32 in place of float32 (D21), nor the reverse
    rank: int = 100  # the report shows the lowest first
    local: bool = True  # its runs are in report.html only, in nothing that git keeps


@dataclass(frozen=True)
class Study:
    """An experiment's file, read."""

    name: str
    section: Section
    sweep: dict[str, list[str]]  # what each swept key takes, as on the command line
    fixed: dict[str, str]  # dataset and model where the file chooses them
    show: list[Entry]

    @property
    def command(self) -> str:
        return f"python train.py experiment={self.name}"

    @cached_property
    def configs(self) -> list[Config]:
        """The config of every run that train.py experiment=NAME trains."""
        return expand([f"experiment={self.name}"])

    def recipe_value(self, key: str, words: str, where: Mapping[str, list]) -> float:
        """Return what the experiment composes for a key of one side of a finding, without what it sweeps."""
        groups = [f"{one.removesuffix('.name')}={values[0]}" for one, values in where.items() if one.endswith(".name")]
        (cfg,) = expand([f"experiment={self.name}", "hydra.mode=RUN", *groups, *side_words(words)])
        return float(select.flatten(cfg.stored())[key])

    @property
    def methods(self) -> list[str]:
        """The names of configs/reg that it trains, the baseline last."""
        found = self.sweep.get("reg", [self.fixed.get("reg", "nl")])  # configs/config.yaml's
        baseline = next((name for name in BASELINES if name in found), found[0])
        return [*(name for name in found if name != baseline), baseline]

    @property
    def size(self) -> int:
        """The number of runs of the sweep."""
        return math.prod(map(len, self.sweep.values()))

    def runs(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return the runs of `df` that differ from a run of the sweep only by seed, or by TF32 (D21) unless `own`."""
        names = {key: self.sweep.get(key, [self.fixed[key]] if key in self.fixed else []) for key in NAMED[:2]}
        return select.trained_as(df, names, lambda: self.configs, own=self.section.precision == "own")

    def missing(self, df: pd.DataFrame) -> int:
        """Return how many runs of the sweep are not done."""
        mine = select.done(self.runs(df))
        there = set(zip(mine["fp32_setting_id"], mine["seed"], strict=True))
        return self.size - sum((cfg.fp32_setting_id, cfg.seed) in there for cfg in self.configs) if there else self.size


# reading -----------------------------------------------------------------------------------------


def read_studies(folder: Path = CONFIGS / "experiment") -> dict[str, Study]:
    """Return every study of a folder by name, in the order of a report; not the files with `compare`."""
    studies = [read_study(path) for path in sorted(folder.glob("*.yaml")) if "compare" not in OmegaConf.load(path)]
    found = {study.name: study for study in sorted(studies, key=lambda study: (study.section.rank, study.name))}
    makers: dict[tuple[str, str], str] = {}
    for study in studies:
        for entry in study.show:
            file, place = f"{entry.folder}/{entry.name}", (entry.folder, entry.name)
            if not isinstance(entry, Find) and place in makers:
                raise UserError(f"{study.name}.yaml: {file} is made by {makers[place]}.yaml too: name it")
            makers[place] = study.name
        _check_methods(study, found)
    return found


def read_study(file: Path) -> Study:
    """Return an experiment's file as a Study; raises UserError in one line for what cannot be shown."""
    raw = read_dict(file)
    params = OmegaConf.select(OmegaConf.create(raw), "hydra.sweeper.params") or {}
    sweep = {str(key): _values(str(value)) for key, value in params.items()}
    fixed = {}
    for default in raw.get("defaults", []):
        for key, value in default.items() if isinstance(default, dict) else ():
            fixed[key.removeprefix("override ").removeprefix("/")] = value
    given = raw.get("study") or {"title": file.stem, "show": _usual(sweep)}
    if not isinstance(given, dict):
        raise UserError(f"{file.name}: study: must have keys, got {given!r}")
    section = checked(Section, given, f"{file.name}: study.")
    study = Study(file.stem, section, sweep, fixed, [])
    for i, given in enumerate(section.show):
        place = f"{file.name}: study.show[{i}]"
        entry = _read_entry(given, place, study)
        if isinstance(entry, Find) and not entry.of:
            entry = entry.model_copy(update={"of": study.methods if isinstance(entry, Swept) else ["nl", "wd"]})
        study.show.append(entry)
    return study


def _check_methods(study: Study, studies: Mapping[str, Study]) -> None:
    """Raise UserError for a finding that names a method that the study and those it borrows from do not train."""
    borrowed = [each.experiment for each in study.section.beside]
    for name in borrowed:
        if name not in studies:
            raise UserError(f"{study.name}.yaml: beside: no such experiment, got {name}")
    known = [*study.methods, *(method for name in borrowed for method in studies[name].methods)]
    for i, entry in enumerate(study.show):
        place = f"{study.name}.yaml: study.show[{i}].of"
        if isinstance(entry, Find) and not isinstance(entry, Swept) and len(entry.of) != 2:
            raise UserError(f"{place}: must name two, the first minus the second, got {len(entry.of)}")
        for words in entry.of if isinstance(entry, Find) else []:
            for name in read_conditions(side_words(words)).get("reg.name", []):
                if name not in known:
                    raise UserError(f"{place}: must name methods of the study ({' '.join(known)}), got {name}")


def _values(text: str) -> list[str]:
    """Return the values of a sweep as Hydra's sweeper reads them: "range(0,3)" -> 0 1 2, "wd,nl" -> wd nl."""
    (override,) = OverridesParser.create().parse_overrides([f"key={text}"])
    return list(override.sweep_string_iterator()) if override.is_sweep_override() else [text]


def _usual(sweep: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """Return what is shown of a sweep whose file does not say."""
    own = [key for key in sweep if key not in (*GROUPS, "seed")]
    over = [key for key in own if pd.to_numeric(pd.Series(sweep[key]), errors="coerce").notna().all()]
    x = over[0] if len(over) == 1 else None
    by = [f"{key}.name" for key in NAMED[:2] if len(sweep.get(key, [])) > 1]
    by += [key for key in own if key != x and not key.startswith("reg.")]
    if x:
        return [{"plot": "over", "x": x, "by": by}, {"table": "over", "x": x, "by": by}]
    return [{"plot": "training", "by": by}, {"table": "compare", "by": by}]


def _read_entry(given: Mapping[str, Any], place: str, study: Study) -> Entry:
    what = [key for key in ENTRIES if key in given]
    if len(what) != 1:
        raise UserError(f"{place}: must have one of the keys {', '.join(ENTRIES)}, got {', '.join(given) or 'none'}")
    types, chosen = ENTRIES[what[0]], given[what[0]]
    if chosen not in types:
        raise UserError(f"{place}.{what[0]}: must be one of {' '.join(types)}, got {chosen!r}")
    rest = {key: value for key, value in given.items() if key != what[0]}
    entry = checked(types[chosen], {"name": study.name, "title": study.section.title} | rest, f"{place}.")
    for key in (*entry.where, *entry.by, *(getattr(entry, axis) for axis in entry.AXES)):
        check_key(key, place)
    return entry


def check_key(key: str, place: str) -> None:
    """Raise UserError for what is no key of any run's config."""
    section = key.partition(".")[0]
    known = {name: {f"{name}.{inner}" for inner in section_keys([name])} for name in TRAINED if name != "seed"}
    known["reg"] |= {f"reg.{inner}" for file in reg_files().values() for inner in file}
    if key != "seed" and key not in known.get(section, ()):
        there = sorted(known.get(section, [*TRAINED]))
        raise UserError(f"{place}: {key}: no such key of a run's config{did_you_mean(key, there)}")


# conditions --------------------------------------------------------------------------------------


def read_conditions(words: list[str]) -> dict[str, list]:
    """Return conditions from train.py's grammar: ["reg=wd,nl", "seed=0"] -> {"reg.name": ["wd", "nl"], "seed": [0]}."""
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


def side_words(words: str) -> list[str]:
    """Return the conditions of one side of a finding: "nl" -> reg=nl; "reg=nl reg.lam_gamma=0.1" as they are."""
    return [word if "=" in word else f"reg={word}" for word in words.split()]
