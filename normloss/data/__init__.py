"""The data sets by name; each is an iterator of batches that is a pure function of (seed, epoch, step).

data.train(epoch, first_step)   yields (x, y) of steps first_step, first_step + 1, ... of the epoch
data.test()                     yields (x, y) of the test set, in order
data.steps_per_epoch, data.train_size, data.test_size, data.fingerprint
data.describe()                 the fingerprint, and what decoded the images, for meta.json
"""

from pathlib import Path

import torch

from normloss.config import Config
from normloss.data import cifar, digits, folder
from normloss.data.imagenet import ImageNetData
from normloss.data.tensors import TensorData
from normloss.runs.store import Run

Data = TensorData | ImageNetData
LOADERS = {"cifar10": cifar.load, "cifar100": cifar.load, "digits": digits.load, "folder": folder.load}


def build(cfg: Config, device: torch.device) -> Data:
    """The data set of a checked config, on `device`; raises UserError where it is missing or not what it should be."""
    data_dir = Path(cfg.data_dir).expanduser()
    if cfg.dataset.name == "imagenet":
        return ImageNetData(cfg.dataset, data_dir, cfg.seed, cfg.train.batch_size, cfg.workers, device)
    train, test = LOADERS[cfg.dataset.name](cfg.dataset, data_dir)
    return TensorData(cfg.dataset, train, test, cfg.seed, cfg.train.batch_size, device)


def refuse_changed(cfg: Config, run: Run) -> None:
    """Raises UserError where the run, finished perhaps, was trained on other images than those that are there now."""
    run.check_data(build(cfg, torch.device("cpu")).fingerprint)
