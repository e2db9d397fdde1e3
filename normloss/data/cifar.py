"""CIFAR-10 and CIFAR-100: a class-folder tree under data_dir, or torchvision's archive with its checksum."""

import socket
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torchvision

from normloss import packs
from normloss.config import Cifar10, Cifar100
from normloss.data import packed
from normloss.data.folder import check_same_classes, read_tree
from normloss.data.tensors import Split
from normloss.errors import UserError

ARCHIVES = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}


def load(cfg: Cifar10 | Cifar100, data_dir: Path) -> tuple[Split, Split]:
    """50,000 training and 10,000 test images, from the first of these that is there:
    data_dir/<name>/{train,test}/<class>/*.png, data_dir/{train,test}/<class>/*.png, data_dir/pack-<name>-*.zip,
    torchvision's files in data_dir, a download into data_dir."""
    for root in (data_dir / cfg.name, data_dir):
        if (root / "train").is_dir():
            check_same_classes(root / "train", root / "test")
            return (
                read_tree(root / "train", cfg, per_class=50_000 // cfg.num_classes),
                read_tree(root / "test", cfg, per_class=10_000 // cfg.num_classes),
            )
    pack = packs.find(data_dir, cfg.name)
    if pack:
        return packed.read(pack)
    return read_archive(cfg, data_dir, train=True), read_archive(cfg, data_dir, train=False)


def read_archive(cfg: Cifar10 | Cifar100, data_dir: Path, train: bool) -> Split:
    before = data_dir.exists()
    try:
        with socket_timeout(30):
            archive = ARCHIVES[cfg.name](str(data_dir), train=train, download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        if not before:
            with suppress(OSError):  # torchvision made it; what is in it by now stays
                data_dir.rmdir()
        raise UserError(
            f"no {cfg.name}: looked for {data_dir / cfg.name}/train, {data_dir}/train and torchvision's files in"
            f" {data_dir}, and the download failed ({str(error).strip() or type(error).__name__});"
            f" put a tree {{train,test}}/<class>/*.png or {archive_name(cfg.name)} there (data_dir=DIR),"
            " or go on at once with dataset=digits"
        ) from None
    return Split(archive.data.transpose(0, 3, 1, 2), np.array(archive.targets, np.int64))


def archive_name(name: str) -> str:
    return {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}[name]


@contextmanager
def socket_timeout(seconds: float):
    """torchvision's download waits for ever for a silent host otherwise."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
