"""Tests a trained model: errors, cross entropy, calibration, and the classes that it confuses most.

normloss evaluate 1a2b3c4d                                     a run of the store, on its test set
normloss evaluate results/weights/1a2b3c4d.safetensors --data DIR
normloss evaluate 1a2b3c4d --split val                         test | val (images held out) | train (not augmented)
normloss evaluate 1a2b3c4d --dataset folder --data DIR         other images of the same classes
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf

from normloss.cli import entry, start
from normloss.config import CONFIGS, Config, check, checked
from normloss.errors import UserError

SPLITS = ("test", "val", "train")
CONFUSED = 5  # pairs of classes
PLAIN: dict[str, Any] = {  # keys of a config that an exported file lacks, since they are no part of what was trained
    "threads": None, "workers": None, "deterministic": False, "store": "results/runs", "checkpoint_minutes": 10.0,
    "budget_minutes": None, "restart": False, "data_dir": "data",
    "wandb": {"mode": "disabled", "project": "normloss", "entity": None, "group": None, "tags": []},
}  # fmt: skip
Predicted = tuple[np.ndarray, np.ndarray]  # the logits (N, K) and labels (N,) of a split


def main(arguments: list[str]) -> int:
    parser = start.Parser(__doc__, prog="normloss evaluate")
    parser.add_argument("model", metavar="RUN_OR_FILE", help="a run's id or folder, or an exported .safetensors file")
    parser.add_argument("--split", choices=SPLITS, default="test", help="images to test (%(default)s)")
    parser.add_argument("--data", metavar="DIR", help="data_dir of the images (default: the run's, else data)")
    parser.add_argument("--dataset", metavar="NAME", help="another data set, of the same classes")
    parser.add_argument(
        "--store", type=Path, default=Path("results/runs"), help="store of a run that is given by its id (%(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto | cpu | mps | cuda | cuda:N (%(default)s)")
    options = parser.parse_args(arguments)
    return entry.script(lambda: print(evaluate(options)))


class Trained(NamedTuple):
    """A trained model and what is kept with it."""

    model: Any  # nn.Module; torch is imported later
    cfg: Config  # that it was trained by
    title: str
    fingerprint: str | None  # of its images
    classes: list[str] | None  # their names by label


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
    found = predict(model, data, options.split, cfg, labels)
    fitted = predict(model, data, "val", cfg, labels) if data.val_size and options.split != "val" else None
    lines = [f"{trained.title}: {options.split} of {cfg.dataset.name}, {len(found[1]):,} images"]
    if own and trained.fingerprint not in (None, data.fingerprint):
        lines.append(f"not the images it was trained on (fingerprint {trained.fingerprint}, got {data.fingerprint})")
    if data.classes and not trained.classes:
        lines.append("the model has no class names: classes are matched by their order")
    names = trained.classes or data.classes or list(map(str, range(cfg.dataset.num_classes)))
    return "\n".join([*lines, *describe(*found, fitted, names)])


# the model ---------------------------------------------------------------------------------------


def find(name: str, store: Path, data_dir: str | None, device: str) -> Trained:
    """Return the model of a run or an exported file; raises UserError if there is none."""
    from normloss.runs import weights
    from normloss.runs.files import read_json

    how = {"device": device} | ({"data_dir": str(Path(data_dir).expanduser())} if data_dir else {})
    if name.endswith(".safetensors"):
        header = weights.describe(name)
        cfg = checked(Config, PLAIN | header["config"] | how)
        return Trained(weights.load(name), cfg, f"{name} ({cfg.label})", None, header.get("classes"))
    path = Path(name) if Path(name).is_dir() else store / name
    if not path.is_dir():
        raise UserError(f"{name}: must be a run of {store}, a run's folder or a .safetensors file")
    path = path.resolve()
    model, _, cfg = weights.load_checkpoint(path)
    done = "" if (path / "DONE").exists() else ", not finished"
    meta = read_json(path / "meta.json") or {}
    title = f"run {cfg.id} ({cfg.label}{done})"
    return Trained(model, checked(Config, cfg.stored() | how), title, meta.get("data"), meta.get("classes"))


def with_dataset(cfg: Config, name: str) -> Config:
    """Return the config with another data set, whose images get the model's size, channels, mean and std."""
    if not CONFIGS.is_dir():
        raise UserError("--dataset: needs a checkout of the suite, whose configs/dataset describe the data sets")
    there = sorted(path.stem for path in (CONFIGS / "dataset").glob("*.yaml"))
    if name not in there:
        raise UserError(f"--dataset: must be one of {' '.join(there)}, got {name!r}")
    own = {key: getattr(cfg.dataset, key) for key in ("size", "channels", "mean", "std")}
    dataset = OmegaConf.merge(OmegaConf.load(CONFIGS / "dataset" / f"{name}.yaml"), own)
    try:  # images that are tested are not padded
        other = check(OmegaConf.create(cfg.stored() | {"padding": "zero", "dataset": dataset}))
    except UserError as error:
        raise UserError(f"--dataset: {name} does not fit the model ({error})") from None
    wanted, got = cfg.dataset.num_classes, other.dataset.num_classes
    if got != wanted:
        raise UserError(f"--dataset: must have the model's {wanted} classes, {name} has {got}")
    return other


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


def predict(model: Any, data: Any, split: str, cfg: Config, own_labels: list[int] | None = None) -> Predicted:
    """Return the model's logits of every image of a split, in the batches and the precision that training tests it in.

    own_labels: the model's label of each of the images' classes, where they differ.
    """
    import torch

    from normloss.training.step import autocast

    model.eval()
    logits, labels = [], []
    with torch.inference_mode():
        for x, y in data.in_order(split):
            with autocast(x.device, cfg.train.precision):
                logits.append(model(x).float().cpu())  # (B, K)
            labels.append(y.cpu())
    found = torch.cat(labels).numpy()
    return torch.cat(logits).numpy(), np.array(own_labels)[found] if own_labels else found


def describe(logits: np.ndarray, labels: np.ndarray, fitted: Predicted | None, names: list[str]) -> list[str]:
    """Return one line per number; `fitted`: of the images that the temperature is fitted to."""
    from normloss.analysis import calibration

    best = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    wrong, wrong5 = (100 * (best[:, :k] != labels[:, None]).all(axis=1).mean() for k in (1, 5))
    ece = 100 * calibration.expected_calibration_error(logits, labels)
    lines = [f"error          {wrong:.2f} %", f"top-5 error    {wrong5:.2f} %"]
    if logits.shape[1] <= 5:  # top-5 is all of them
        lines.pop()
    lines.append(f"cross entropy  {calibration.cross_entropy(logits, labels):.4f}")
    lines.append(f"calibration    ECE {ece:.2f} % ({calibration.BINS} bins)")
    if fitted:
        t = calibration.temperature(*fitted)
        after = 100 * calibration.expected_calibration_error(logits / t, labels)
        lines.append(
            f"  scaled       ECE {after:.2f} %, cross entropy {calibration.cross_entropy(logits / t, labels):.4f} at"
            f" temperature {t:.3g}, fitted to {len(fitted[1]):,} images held out"
        )
    for i, (true, taken, images, of) in enumerate(calibration.confused_most(logits, labels, CONFUSED)):
        head = "confused most  " if i == 0 else " " * 15
        lines.append(f"{head}{names[true]} classified as {names[taken]}: {images} of {of} ({100 * images / of:.1f} %)")
    return lines
