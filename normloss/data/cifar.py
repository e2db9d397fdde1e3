"""CIFAR-10 and CIFAR-100: an .npz file, a class-folder tree, or Krizhevsky's archive, downloaded where nothing is."""

from pathlib import Path

import numpy as np

from normloss.config import Cifar10, Cifar100
from normloss.config.images import is_npz
from normloss.data import arrays, cifar_archive
from normloss.data.folder import check_same_classes, read_tree
from normloss.data.tensors import Split
from normloss.errors import UserError

IMAGES = {"train": 50_000, "test": 10_000}


def load(cfg: Cifar10 | Cifar100, data_dir: Path) -> tuple[Split, ...]:
    """Return 50,000 training and 10,000 test images, from the first of these that is there: data_dir as an .npz file,
    data_dir/<name>/{train,test}/<class>/*.png, data_dir/{train,test}/<class>/*.png, the archive or its folder.

    With dataset.val=file the file's val_images too, which are then among the 50,000. UserError for anything else.
    """
    if data_dir.name == cifar_archive.ARCHIVES[cfg.name].file:
        data_dir = data_dir.parent
    if is_npz(data_dir):
        parts = arrays.load(cfg, data_dir)
        check_counts(data_dir, cfg, *parts)
        return parts
    if cfg.val == "file":
        raise UserError(f"dataset.val: file needs data_dir=FILE.npz with val_images for {cfg.name}, got {data_dir}")
    for root in (data_dir / cfg.name, data_dir):
        if (root / "train").is_dir():
            check_same_classes(root / "train", root / "test")
            parts = tuple(read_tree(root / part, cfg) for part in IMAGES)
            check_counts(root, cfg, *parts)
            return parts
    return cifar_archive.load(cfg.name, data_dir)


def check_counts(place: Path, cfg: Cifar10 | Cifar100, train: Split, test: Split, *val: Split) -> None:
    """Raises UserError unless training (val among it) and test images are as many of each class as the data set has."""
    for part, splits in (("train", [train, *val]), ("test", [test])):
        images = np.bincount(np.concatenate([split.labels for split in splits]), minlength=cfg.num_classes)
        wanted = IMAGES[part] // cfg.num_classes
        if (odd := images != wanted).any():
            raise UserError(
                f"{place}: {part} must hold {wanted} images of each class for {cfg.name}, got {images[odd][0]} of class"
                f" {odd.argmax()}"
            )
