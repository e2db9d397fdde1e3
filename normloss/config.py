"""Every config key once: its type, unit, range and source. Data only, torch is not imported here.

`check` turns what Hydra composed into a frozen `Config`, or raises a UserError whose one line
names the key, the requirement and the value. `run_id` hashes what is trained, not where or how.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from normloss import packs
from normloss.errors import UserError

OmegaConf.register_new_resolver("folder_label", lambda data_dir: _folder_label(Path(data_dir).expanduser()))
OmegaConf.register_new_resolver("rescale", lambda epochs, of, to: [max(1, round(e * to / of)) for e in epochs])

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
IDENTITY = ("dataset", "model", "reg", "train", "seed")
HOW = ("executor",)  # keys of train that say how a run is trained, not what: no part of its identity

Count = Annotated[int, Field(strict=True, ge=1)]
Natural = Annotated[int, Field(strict=True, ge=0)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1)]
Flag = Annotated[bool, Field(strict=True)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# dataset ---------------------------------------------------------------------------------------


class Images(Section):
    """A labelled image set, normalised as (pixel - mean) / std with pixels in 0..255."""

    num_classes: Count
    channels: Count
    size: Count  # pixels, height and width of what the model sees
    flip: Fraction  # probability of a horizontal flip
    mean: list[Real]  # a value per channel, 0..255
    std: list[Positive]


class TensorImages(Images):
    """Images that stay on the device as one uint8 tensor: pad, random crop, flip."""

    pad: Natural  # pixels on each side
    padding: Literal["zero", "reflect", "mean"]  # zero is black; mean is zero after normalisation


class Cifar10(TensorImages):
    name: Literal["cifar10"]
    num_classes: Literal[10]
    channels: Literal[3]
    size: Literal[32]


class Cifar100(TensorImages):
    name: Literal["cifar100"]
    num_classes: Literal[100]
    channels: Literal[3]
    size: Literal[32]


class Digits(TensorImages):
    name: Literal["digits"]
    num_classes: Literal[10]
    channels: Literal[1]


class Folder(TensorImages):
    name: Literal["folder"]
    label: str  # tells one user's data from another's in the run id
    channels: Literal[1, 3]


class ImageNet(Images):
    """Photographs, read from their files when they are due; augmentation of fb.resnet.torch."""

    name: Literal["imagenet"]
    label: str
    channels: Literal[3]
    resize: Count  # pixels, short side before the centre crop in evaluation
    min_area: Annotated[float, Field(strict=True, gt=0, le=1)]  # of a random crop, share of the image
    color_jitter: Fraction  # brightness, contrast and saturation: factor U(1-j, 1+j)
    lighting: NonNegative  # standard deviation along the principal colours, image in 0..1


# model -----------------------------------------------------------------------------------------


class Model(Section):
    name: str
    init: Literal["fan_out", "fan_in"]  # N(0, 2 / fan) for convolutions
    gamma_init: Literal["ones", "uniform"]  # batch norm's scale: 1, or U(0, 1)


class ResNetCifar(Model):
    family: Literal["resnet_cifar"]
    depth: Count  # 6n + 2


class WideResNet(Model):
    family: Literal["wide_resnet"]
    depth: Count  # 6n + 4
    width: Count  # multiplies 16, 32, 64 channels
    dropout: Annotated[float, Field(strict=True, ge=0, lt=1)]


class ResNetImageNet(Model):
    family: Literal["resnet_imagenet"]
    depth: Literal[18, 50]


# regularizer -----------------------------------------------------------------------------------


class Reg(BaseModel):
    """What every method understands; a method's own keys are those of its configs/reg/*.yaml."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    lam: NonNegative = 0.0
    lam_milestones: list[Count] = []  # epochs at which lam changes
    lam_gamma: NonNegative = 1.0  # lam is multiplied by this at each, or
    lam_values: list[NonNegative] | None = None  # takes these values: one more than milestones
    weight_decay: NonNegative = 0.0  # SGD's, on every parameter, beside the method


# training --------------------------------------------------------------------------------------


class Train(Section):
    batch_size: Count  # images a step
    epochs: Count
    lr: Positive
    momentum: Annotated[float, Field(strict=True, ge=0, lt=1)]
    nesterov: Flag
    milestones: list[Count]  # epochs, counted from 0, at which lr is multiplied by gamma
    gamma: Positive
    warmup: Natural  # steps at warmup_lr
    warmup_lr: Positive
    micro_batch: Count | None  # images that share batch-norm statistics; divides batch_size
    precision: Literal["fp32", "tf32", "bf16"]
    max_steps: Count | None  # ends the run after so many steps
    eval_batches: Count | None  # evaluates on so many test batches
    # how a step is run, no part of the identity; the default reads configs stored before the key was there
    executor: Literal["auto", "eager", "graph", "compile"] = "auto"


class WandB(Section):
    mode: Literal["auto", "online", "offline", "disabled"]
    project: str
    entity: str | None
    group: str | None
    tags: list[str]


class Config(Section):
    dataset: Annotated[Cifar10 | Cifar100 | Digits | Folder | ImageNet, Field(discriminator="name")]
    model: Annotated[ResNetCifar | WideResNet | ResNetImageNet, Field(discriminator="family")]
    reg: Reg
    train: Train
    seed: Natural
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
    threads: Count | None
    workers: Natural | None
    decode: Literal["host", "device"] = "host"  # the default reads configs stored before the key was there
    deterministic: Flag
    data_dir: str
    store: Annotated[str, Field(min_length=1)]
    checkpoint_minutes: Positive
    budget_minutes: Positive | None
    restart: Flag
    wandb: WandB

    @property
    def id(self) -> str:
        return run_id(self)

    @property
    def label(self) -> str:
        """What a person calls the run: digits resnet8 nl lam=0.01 seed=0."""
        lam = f" lam={self.reg.lam:g}" if self.reg.lam else ""
        return f"{self.dataset.name} {self.model.name} {self.reg.name}{lam} seed={self.seed}"


def science(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is trained, of a config as a run folder holds it: its run id is made of this, and runs match by it."""
    train = {key: value for key, value in config["train"].items() if key not in HOW}
    return {key: config[key] for key in IDENTITY} | {"train": train}


def run_id(cfg: Config) -> str:
    """8 hex digits of SHA-256 over the scientific part of the config in canonical JSON."""
    return _digest(science(cfg.model_dump(mode="json")))


def cell_id(cfg: Config) -> str:
    """The same for all runs that differ in the seed only: a cell of the paper's tables."""
    return _digest(science(cfg.model_dump(mode="json")) | {"seed": None})


def _digest(value: dict[str, Any]) -> str:
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _canonical(value: Any) -> Any:
    """One spelling for each number, so that lam=1 and lam=1.0 are one run."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


# checks ----------------------------------------------------------------------------------------


def check(raw: DictConfig) -> Config:
    """The typed config of one run, or a UserError in one line."""
    values = _resolve(raw)
    values["store"] = os.path.expanduser(str(values.get("store", "")))
    for transient in ("lam", "padding"):  # the recipe's, interpolated into reg and dataset by now
        values.pop(transient, None)
    try:
        cfg = Config.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error.errors()[0])) from None
    _check_reg_keys(cfg.reg)
    _check_across_keys(cfg)
    return cfg


def _resolve(raw: DictConfig) -> dict:
    raw = raw.copy()
    OmegaConf.set_struct(raw, False)
    dataset = raw.get("dataset")
    if dataset is not None and dataset.get("name") == "folder" and OmegaConf.is_missing(dataset, "num_classes"):
        dataset.num_classes = _count_classes(Path(raw.data_dir))
    try:
        return OmegaConf.to_container(raw, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        raise UserError(f"{key}: {str(error).splitlines()[0]}") from None


def _folder_label(data_dir: Path) -> str:
    """The name of a user's folder of images, also where they were packed since."""
    pack = None if (data_dir / "train").is_dir() else packs.find(data_dir, "folder")
    return (pack and pack.about.get("label")) or data_dir.resolve().name


def _count_classes(data_dir: Path) -> int:
    train = data_dir / "train"
    pack = None if train.is_dir() else packs.find(data_dir, "folder")
    if pack:
        return pack.about["num_classes"]
    classes = [path for path in train.iterdir() if path.is_dir() and path.name[0] != "."] if train.is_dir() else []
    if not classes:
        raise UserError(f"dataset=folder: no class folders in {train}; data_dir=DIR must hold DIR/train/<class>/*.png")
    return len(classes)


def _explain(error: dict) -> str:
    """'train.batch_size: must be at least 1, got 0' from one of pydantic's error records."""
    tags = {"cifar10", "cifar100", "digits", "folder", "imagenet", "resnet_cifar", "wide_resnet", "resnet_imagenet"}
    keys = [str(part) for i, part in enumerate(error["loc"]) if not (i == 1 and part in tags)]
    key, value, limits = ".".join(keys), error["input"], error.get("ctx", {})
    kind = error["type"]
    if kind == "extra_forbidden":
        section = section_keys(keys[:-1])
        return f"{key}: no such key{did_you_mean(keys[-1], section, prefix='.'.join(keys[:-1]))}"
    if kind == "missing":
        return f"{key}: must be given"
    requirement = {
        "greater_than_equal": "must be at least {ge:g}",
        "greater_than": "must be greater than {gt:g}",
        "less_than_equal": "must be at most {le:g}",
        "less_than": "must be less than {lt:g}",
        "int_type": "must be a whole number",
        "float_type": "must be a number",
        "finite_number": "must be a finite number",
        "bool_type": "must be true or false",
        "string_type": "must be a text",
        "list_type": "must be a list",
        "literal_error": "must be {expected}",
        "union_tag_invalid": "must be one of {expected_tags}",
        "string_pattern_mismatch": "must be auto, cpu, mps, cuda or cuda:N",
    }.get(kind, error["msg"])
    if kind == "union_tag_invalid":
        key, value = f"{key}.{limits['discriminator']}".replace("'", ""), limits["tag"]
    return f"{key}: {requirement.format(**limits)}, got {value!r}"


def section_keys(keys: list[str]) -> list[str]:
    """The keys of the section that `keys` leads to."""
    schema: Any = Config
    for key in keys:
        schema = {"dataset": ImageNet, "model": WideResNet, "train": Train, "wandb": WandB}.get(key, schema)
    return list(schema.model_fields)


def did_you_mean(word: str, known: list[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {prefix + '.' if prefix else ''}{near[0]}?" if near else f"; there are: {' '.join(known)}"


@cache
def _all_reg_files() -> list[dict]:
    paths = sorted((CONFIGS / "reg").glob("*.yaml"))
    return [OmegaConf.to_container(OmegaConf.load(path), resolve=False) for path in paths]


def reg_files(name: str) -> list[dict]:
    """The contents of every configs/reg/*.yaml of a method: they say which keys it has."""
    return [file for file in _all_reg_files() if file["name"] == name]


def _check_reg_keys(reg: Reg) -> None:
    """A method's keys, and the types of its own, are those of its configs/reg/*.yaml."""
    files = reg_files(reg.name)
    if not files:
        methods = sorted({file["name"] for file in _all_reg_files()})
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
    rising = all(a < b for a, b in pairwise(train.milestones))
    if not rising or any(epoch >= train.epochs for epoch in train.milestones):
        raise UserError(
            f"train.milestones: must rise and lie between 1 and train.epochs-1={train.epochs - 1},"
            f" got {train.milestones} (train.milestones=[] for none)"
        )
    # a schedule rescaled to few epochs may pass two of its milestones at once
    if reg.lam_milestones != sorted(reg.lam_milestones) or any(e > train.epochs for e in reg.lam_milestones):
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
    if cfg.decode == "device" and not isinstance(dataset, ImageNet):
        raise UserError(f"decode: device needs dataset=imagenet, got {dataset.name}")
    if isinstance(dataset, TensorImages) and dataset.padding == "reflect" and dataset.pad >= dataset.size:
        raise UserError(f"dataset.pad: must be less than dataset.size={dataset.size} to reflect, got {dataset.pad}")
    if isinstance(dataset, ImageNet) and dataset.resize < dataset.size:
        raise UserError(f"dataset.resize: must be at least dataset.size={dataset.size}, got {dataset.resize}")
    model = cfg.model
    for family, cls, offset in (("6n+2", ResNetCifar, 2), ("6n+4", WideResNet, 4)):
        if isinstance(model, cls) and (model.depth <= offset or (model.depth - offset) % 6):
            raise UserError(f"model.depth: must be {family}, got {model.depth}")
