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

from normloss.config import Config
from normloss.config.shares import Part
from normloss.data import cifar, digits, folder
from normloss.data.imagenet import ImageNetData
from normloss.data.tensors import Split, TensorData, hold_out
from normloss.errors import UserError

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
    except OSError as error:
        raise UserError(f"data_dir: cannot read {error.filename or data_dir} ({error.strerror or error})") from None
    if dataset.val and not held:
        assert isinstance(dataset.val, int)  # file: the loader returned it, or raised
        train, *held = hold_out(train, dataset.val)
    return TensorData(dataset, train, test, cfg.seed, cfg.train.batch_size, device, *held)
