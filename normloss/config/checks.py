"""The typed config of what Hydra composed; or one line that names the key, the requirement and the value."""

import difflib
import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from normloss.config.identity import RETIRED, without_retired
from normloss.config.images import count_classes, folder_label
from normloss.config.labels import reg_files
from normloss.config.plain import as_dict
from normloss.config.schema import Config, ImageNet, Reg, ResNetCifar, TensorImages, WideResNet
from normloss.errors import UserError

S = TypeVar("S", bound=BaseModel)
OmegaConf.register_new_resolver("folder_label", lambda data_dir: folder_label(Path(data_dir)))


def check(raw: DictConfig) -> Config:
    """Return the typed config of one run; raises UserError in one line."""
    if not isinstance(raw.get("lam", {}), Mapping):  # the recipe's, by method
        raise UserError("lam: no such key; did you mean reg.lam?")
    values = _resolve(raw)
    # the recipe's, interpolated by now; what is drawn of an experiment (analysis/study.py); what a comparison tries
    for transient in ("lam", "padding", "study", "compare"):
        values.pop(transient, None)
    cfg = checked(Config, values)
    _check_reg_keys(cfg.reg)
    _check_across_keys(cfg)
    return cfg


def checked(kind: type[S], values: Mapping[str, Any], prefix: str = "") -> S:
    """Return typed values; raises UserError in one line, whose key `prefix` begins."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        # a key that is wrong is the reason why another one is missing
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        raise UserError(prefix + _explain(first, kind)) from None


def read_stored(stored: Mapping[str, Any]) -> Config:
    """Return the config of a run folder of this version or an earlier one; raises UserError."""
    return checked(Config, without_retired(stored))


def _resolve(raw: DictConfig) -> dict[str, Any]:
    raw = raw.copy()
    OmegaConf.set_struct(raw, False)
    for path in ("data_dir", "store"):
        if raw.get(path) is None:
            raise UserError(f"{path}: must be given")
        raw[path] = os.path.expanduser(str(raw[path]))
    dataset = raw.get("dataset")
    if dataset is not None and dataset.get("name") == "folder":
        folder_label(Path(raw.data_dir))  # a bad file is reported here: OmegaConf rewords what its resolvers raise
        if OmegaConf.is_missing(dataset, "num_classes"):
            dataset.num_classes = count_classes(Path(raw.data_dir))
    try:
        return as_dict(raw, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        raise UserError(f"{key}: {str(error).splitlines()[0]}") from None


def _explain(error: ErrorDetails, config: type[BaseModel]) -> str:
    """Return 'train.batch_size: must be at least 1, got 0' from one of pydantic's error records."""
    first, *rest = map(str, error["loc"])
    keys = [first, *(rest[1:] if first in ("dataset", "model") else rest)]  # there pydantic names the class by its tag
    key, value, limits = ".".join(keys), error["input"], error.get("ctx", {})
    kind = error["type"]
    if kind == "extra_forbidden":
        if key in RETIRED:
            return is_gone(key)
        section = section_keys(keys[:-1], config)
        return f"{key}: no such key{did_you_mean(keys[-1], section, prefix='.'.join(keys[:-1]))}"
    if kind == "missing":
        return f"{key}: must be given"
    requirement = {
        "greater_than_equal": "must be at least {ge:g}",
        "model_type": "must be set key by key (python train.py --cfg job shows them)",
        "union_tag_invalid": "must be one of {expected_tags}",
        "string_pattern_mismatch": "must be auto, cpu, mps, cuda or cuda:N",
    }.get(kind, error["msg"].removeprefix("Value error, ").replace("Input should be", "must be"))
    if kind == "union_tag_invalid":
        key, value = f"{key}.{limits['discriminator']}".replace("'", ""), limits["tag"]
    return f"{key}: {requirement.format(**limits)}, got {value!r}"


def section_keys(keys: list[str], of: type[BaseModel] = Config) -> list[str]:
    """Return the keys of a section such as ["train"], of all data sets or networks together; of a config for []."""
    if not keys or keys[0] not in of.model_fields:
        return list(of.model_fields)
    kind = of.model_fields[keys[0]].annotation
    return list(dict.fromkeys(key for section in get_args(kind) or (kind,) for key in section.model_fields))


def is_gone(key: str) -> str:
    """Return the answer to a key of an earlier version."""
    return f"{key}: is gone since version 0.2.0; {RETIRED[key]}"


def did_you_mean(word: str, known: list[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {prefix + '.' if prefix else ''}{near[0]}?" if near else f"; there are: {' '.join(known)}"


def _check_reg_keys(reg: Reg) -> None:
    """Raises UserError unless a method's keys, and the types of its own, are those of its configs/reg/*.yaml."""
    files = [file for file in reg_files().values() if file["name"] == reg.name]
    if not files:
        methods = sorted({file["name"] for file in reg_files().values()})
        raise UserError(f"reg.name: must be one of {' '.join(methods)}, got {reg.name!r}")
    known = sorted({key for file in files for key in file})
    for key in reg.model_fields_set:
        if key not in known:
            raise UserError(f"reg.{key}: no such key for reg={reg.name}{did_you_mean(key, known, 'reg')}")
        value, examples = getattr(reg, key), [file[key] for file in files if key in file]
        if key not in Reg.model_fields and not any(_is_like(value, example) for example in examples):
            raise UserError(f"reg.{key}: must be like {' or '.join(map(repr, examples))}, got {value!r}")


def _is_like(value: Any, example: Any) -> bool:
    if isinstance(example, float) and isinstance(value, int):
        return not isinstance(value, bool)
    return type(value) is type(example) or (isinstance(example, str) and example.startswith("${"))


def _check_across_keys(cfg: Config) -> None:
    train, reg, dataset = cfg.train, cfg.reg, cfg.dataset
    if any(a >= b for a, b in pairwise([*train.milestones, train.epochs])):
        raise UserError(
            f"train.milestones: must rise and lie between 1 and train.epochs-1={train.epochs - 1},"
            f" got {train.milestones} (train.milestones=[] for none)"
        )
    if train.lr_values is not None:
        if len(train.lr_values) != train.epochs:
            raise UserError(
                "train.lr_values: must hold a value for each of"
                f" train.epochs={train.epochs}, got {len(train.lr_values)}"
            )
        if train.milestones:
            raise UserError(
                f"train.lr_values: must not be given with train.milestones, got {train.milestones}"
                " (train.milestones=[] for none)"
            )
    # of a schedule rescaled to very few epochs several may stand at the end, where they change nothing
    if any(a > b for a, b in pairwise([*reg.lam_milestones, train.epochs])):
        raise UserError(
            f"reg.lam_milestones: must not fall and lie between 1 and train.epochs={train.epochs},"
            f" got {reg.lam_milestones} (reg.lam_milestones=[] for none)"
        )
    if train.micro_batch and train.batch_size % train.micro_batch:
        raise UserError(f"train.micro_batch: must divide train.batch_size={train.batch_size}, got {train.micro_batch}")
    if train.nesterov and train.momentum == 0:
        raise UserError("train.nesterov: needs train.momentum greater than 0, got momentum=0")
    if reg.lam_values is not None:
        if len(reg.lam_values) != len(reg.lam_milestones) + 1:
            raise UserError(
                f"reg.lam_values: must hold one value more than reg.lam_milestones"
                f" ({len(reg.lam_milestones)}), got {len(reg.lam_values)}"
            )
        if reg.lam_gamma != 1.0:
            raise UserError(f"reg.lam_values: must not be given with reg.lam_gamma, got lam_gamma={reg.lam_gamma}")
    for key in ("mean", "std"):
        if len(getattr(dataset, key)) != dataset.channels:
            raise UserError(
                f"dataset.{key}: must hold dataset.channels={dataset.channels} values, got {getattr(dataset, key)}"
            )
    if isinstance(dataset, TensorImages) and dataset.padding == "reflect" and dataset.pad >= dataset.size:
        raise UserError(f"dataset.pad: must be less than dataset.size={dataset.size} to reflect, got {dataset.pad}")
    if isinstance(dataset, ImageNet) and dataset.resize < dataset.size:
        raise UserError(f"dataset.resize: must be at least dataset.size={dataset.size}, got {dataset.resize}")
    model = cfg.model
    for family, cls, offset in (("6n+2", ResNetCifar, 2), ("6n+4", WideResNet, 4)):
        if isinstance(model, cls) and (model.depth <= offset or (model.depth - offset) % 6):
            raise UserError(f"model.depth: must be {family}, got {model.depth}")
