"""The data sets by name; each is an iterator of batches that is a pure function of (seed, epoch, step).

data.train(epoch, first_step)   yields (x, y) of steps first_step, first_step + 1, ... of the epoch
data.in_order(part)             yields (x, y) of "test", of "val" (images held out, dataset.val) or of "train", in order
data.steps_per_epoch, data.train_size, data.test_size, data.val_size, data.fingerprint
data.describe()                 the fingerprint, the names of the classes and what decoded the images, for meta.json

May import runs, config and signals. Start reading at tensors.py, which most data sets end in; folder.py, arrays.py and
cifar.py read them, imagenet.py keeps photographs in their files.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from normloss.config import Cifar10, Cifar100, Config, Digits
from normloss.config.images import Npz, class_folders, is_npz
from normloss.config.schema import Images
from normloss.config.shares import Part
from normloss.data import cifar, digits, folder
from normloss.data.imagenet import ImageNetData
from normloss.data.tensors import Split, TensorData, hold_out
from normloss.errors import UserError
from normloss.runs.store import Run

Data = TensorData | ImageNetData
LOADERS: dict[str, Callable[[Any, Path], tuple[Split, ...]]] = {  # each takes its own data set's config
    "cifar10": cifar.load,
    "cifar100": cifar.load,
    "digits": digits.load,
    "folder": folder.load,
}


def build(cfg: Config, device: torch.device, part: Part = Part(0, 1)) -> Data:
    """Return the data set of a checked config, on `device`; raises UserError if it is missing or malformed.

    part: of imagenet, this process's images of each step, where several share it out.
    """
    dataset, data_dir = cfg.dataset, Path(cfg.data_dir)
    try:
        if dataset.name == "imagenet":
            return ImageNetData(cfg, device, part)
        train, test, *held = LOADERS[dataset.name](dataset, data_dir)
        classes = class_names(dataset, data_dir)
    except OSError as error:
        raise UserError(f"data_dir: cannot read {error.filename or data_dir} ({error.strerror or error})") from None
    if dataset.val and not held:
        assert isinstance(dataset.val, int)  # file: the loader returned it, or raised
        train, *held = hold_out(train, dataset.val, classes)
    val = held[0] if held else None
    return TensorData(dataset, train, test, cfg.seed, cfg.train.batch_size, device, val, classes)


def class_names(cfg: Images, data_dir: Path) -> list[str] | None:
    """Return the names of a data set's classes by label; None where the images do not say."""
    if isinstance(cfg, Digits):
        return None
    if is_npz(data_dir):
        file = Npz(data_dir)
        return file.text("classes") if "classes" in file else None
    roots = (data_dir / cfg.name, data_dir) if isinstance(cfg, Cifar10 | Cifar100) else (data_dir,)
    root = next((root / "train" for root in roots if (root / "train").is_dir()), None)
    return [path.name for path in class_folders(root)] if root else None


def refuse_changed(cfg: Config, run: Run) -> None:
    """Raises UserError if the run, finished perhaps, was trained on other images than those that are there now."""
    run.check_data(build(cfg, torch.device("cpu")).fingerprint)
