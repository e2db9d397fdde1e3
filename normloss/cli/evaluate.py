"""Tests a trained model: errors, cross entropy, calibration, and the classes that it confuses most.

normloss evaluate 1a2b3c4d                                     a run of the store, on its test set
normloss evaluate results/weights/1a2b3c4d.safetensors --data DIR
normloss evaluate 1a2b3c4d --split val                         test | val (images held out) | train (not augmented)
normloss evaluate 1a2b3c4d --dataset folder --data DIR         other images of the same classes
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import ValidationError

from normloss.cli import entry
from normloss.config import CONFIGS, Config, read_stored
from normloss.config.images import count_classes, folder_label
from normloss.errors import UserError

SPLITS = ("test", "val", "train")
CONFUSED = 5  # pairs of classes
PLAIN: dict[str, Any] = {  # keys of a config that an exported file lacks, since they are no part of what was trained
    "threads": None, "workers": None, "deterministic": False, "store": "results/runs", "checkpoint_minutes": 10.0,
    "budget_minutes": None, "restart": False,
    "wandb": {"mode": "disabled", "project": "normloss", "entity": None, "group": None, "tags": []},
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """The logits (N, K) and labels (N,) of a split, and the model's errors and cross entropy on it."""

    logits: np.ndarray
    labels: np.ndarray
    error: float  # percent
    error_top5: float
    ce: float


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="normloss evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="RUN_OR_FILE", help="a run's id or folder, or an exported .safetensors file")
    parser.add_argument("--split", choices=SPLITS, default="test", help="(%(default)s)")
    parser.add_argument("--data", metavar="DIR", help="data_dir of the images (default: the run's, else data)")
    parser.add_argument("--dataset", metavar="NAME", help="another data set, with the model's classes")
    parser.add_argument("--store", type=Path, default=Path("results/runs"), help="of a run named by id (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto | cpu | mps | cuda | cuda:N (%(default)s)")
    options = parser.parse_args(arguments)
    return entry.script(lambda: print(evaluate(options)))


@dataclass(frozen=True)
class Trained:
    """A trained model and what is kept with it."""

    model: Any  # nn.Module; torch is imported later
    cfg: Config  # that it was trained by
    title: str
    fingerprint: str | None = None  # of its images
    classes: list[str] | None = None  # their names by label


def evaluate(options: argparse.Namespace) -> str:
    """Return the text to print."""
    from normloss import data as datasets
    from normloss.training import device as devices

    trained = find(options.model, options.store, options.data, options.device)
    cfg, own = trained.cfg, options.dataset in (None, trained.cfg.dataset.name)
    if not own:
        cfg = with_dataset(cfg, options.dataset)
    device = devices.setup(cfg)
    data = datasets.build(cfg, device)
    if not getattr(data, f"{options.split}_size"):
        raise UserError(f"--split val: needs images held out of training (dataset.val), got {cfg.dataset.val}")
    labels = match_classes(data.classes, trained.classes)
    model = trained.model.to(device)
    result = predict(model, data, options.split, cfg, labels)
    fitted = predict(model, data, "val", cfg, labels) if data.val_size and options.split != "val" else None
    lines = [f"{trained.title}: {options.split} of {cfg.dataset.name}, {len(result.labels):,} images"]
    if own and trained.fingerprint not in (None, data.fingerprint):
        lines.append(f"not the images it was trained on (fingerprint {trained.fingerprint}, got {data.fingerprint})")
    if data.classes and not trained.classes:
        lines.append("no class names are kept with the model: classes are matched by their order")
    names = trained.classes or data.classes or list(map(str, range(cfg.dataset.num_classes)))
    return "\n".join([*lines, *describe(result, fitted, names)])


# the model ---------------------------------------------------------------------------------------


def find(name: str, store: Path, data_dir: str | None, device: str) -> Trained:
    """Return the model of a run or an exported file; raises UserError if there is none."""
    from normloss.runs import contract, weights
    from normloss.runs.files import read_json
    from normloss.runs.records import read_config

    how = {"device": device} | ({"data_dir": str(Path(data_dir).expanduser())} if data_dir else {})
    if name.endswith(".safetensors"):
        header = weights.describe(name)
        cfg = _config(PLAIN | {"data_dir": "data"} | header["config"] | how)
        return Trained(weights.load(name), cfg, f"{name} ({cfg.label})", None, header.get("classes"))
    path = Path(name) if Path(name).is_dir() else store / name
    if not path.is_dir():
        raise UserError(f"{name}: must be a run of {store}, a run's folder or a .safetensors file")
    path = path.resolve()
    model = weights.load_checkpoint(path)
    cfg = _config(read_stored(contract.read_config(path, path.name)).stored() | how)
    done = "" if (path / "DONE").exists() else ", not finished"
    meta = read_json(path / "meta.json") or {}
    return Trained(model, cfg, f"run {cfg.id} ({cfg.label}{done})", meta.get("data"), meta.get("classes"))


def _config(values: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r}") from None


def with_dataset(cfg: Config, name: str) -> Config:
    """Return the config with another data set, whose images get the model's size, channels, mean and std."""
    if not CONFIGS.is_dir():
        raise UserError("--dataset: needs a checkout of the suite, whose configs/dataset describe the data sets")
    there = sorted(path.stem for path in (CONFIGS / "dataset").glob("*.yaml"))
    if name not in there:
        raise UserError(f"--dataset: must be one of {' '.join(there)}, got {name!r}")
    values = yaml.safe_load((CONFIGS / "dataset" / f"{name}.yaml").read_text())
    model = cfg.dataset.model_dump(mode="json")
    if name == "folder":
        values |= {"label": folder_label(Path(cfg.data_dir)), "num_classes": count_classes(Path(cfg.data_dir))}
    if values["num_classes"] != model["num_classes"]:
        raise UserError(
            f"--dataset: must have the model's {model['num_classes']} classes, {name} has {values['num_classes']}"
        )
    values |= {key: model[key] for key in ("size", "channels", "mean", "std")}
    if "padding" in values:
        values["padding"] = "zero"  # images that are tested are not padded
    if "resize" in values:
        values["resize"] = max(values["resize"], values["size"])
    return _config(cfg.stored() | {"dataset": values})


def match_classes(images: list[str] | None, model: list[str] | None) -> list[int] | None:
    """Return the model's label of each of the images' classes, by name; None where they are matched by order.

    Raises UserError if the names are not the model's.
    """
    if images is None or model is None:
        return None
    if sorted(images) != sorted(model):
        ours, theirs = (" ".join([*names[:8], *(["..."] if len(names) > 8 else [])]) for names in (model, images))
        raise UserError(f"data_dir: must hold the model's classes {ours}, got {theirs}")
    return [model.index(name) for name in images]


# its numbers -------------------------------------------------------------------------------------


def predict(model: Any, data: Any, split: str, cfg: Config, own_labels: list[int] | None = None) -> Result:
    """Return the model's logits of every image of a split, in the batches and the precision that training tests it in.

    own_labels: the model's label of each of the images' classes, where they differ.
    """
    import torch
    import torch.nn.functional as F

    from normloss.training.step import autocast

    batches = {"test": data.test, "val": data.val, "train": data.train_in_order}[split]
    model.eval()
    logits, labels, ce = [], [], 0.0
    with torch.inference_mode():
        for x, y in batches():
            if own_labels:
                y = torch.tensor(own_labels, device=y.device)[y]
            with autocast(x.device, cfg.train.precision):
                out = model(x).float()  # (B, K)
            ce += float(F.cross_entropy(out, y, reduction="sum"))
            logits.append(out.cpu())
            labels.append(y.cpu())
    out, y = torch.cat(logits), torch.cat(labels)
    hit = out.topk(min(5, out.shape[1])).indices == y[:, None]
    wrong, wrong5 = (100 * float((~found).double().mean()) for found in (hit[:, 0], hit.any(1)))
    return Result(out.numpy(), y.numpy(), wrong, wrong5, ce / len(y))


def describe(result: Result, fitted: Result | None, names: list[str]) -> list[str]:
    """Return one line per number; `fitted`: the images that the temperature is fitted to."""
    from normloss.analysis.calibration import (
        BINS,
        confused_most,
        cross_entropy,
        expected_calibration_error,
        temperature,
    )

    ece = 100 * expected_calibration_error(result.logits, result.labels)
    lines = [f"error          {result.error:.2f} %", f"top-5 error    {result.error_top5:.2f} %"]
    if result.logits.shape[1] <= 5:  # top-5 is all of them
        lines.pop()
    lines += [f"cross entropy  {result.ce:.4f}", f"calibration    ECE {ece:.2f} % ({BINS} bins)"]
    if fitted:
        t = temperature(fitted.logits, fitted.labels)
        scaled = result.logits / t
        after = 100 * expected_calibration_error(scaled, result.labels)
        lines.append(
            f"  scaled       ECE {after:.2f} %, cross entropy {cross_entropy(scaled, result.labels):.4f} at temperature"
            f" {t:.3g}, fitted to {len(fitted.labels):,} images held out"
        )
    for i, (true, taken, images, of) in enumerate(confused_most(result.logits, result.labels, CONFUSED)):
        head = "confused most  " if i == 0 else " " * 15
        lines.append(f"{head}{names[true]} taken for {names[taken]}: {images} of {of} ({100 * images / of:.1f} %)")
    return lines
