"""Class-folder trees, {train,test}/<class>/*.png|jpg, decoded once into a cache that notices a changed source."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from normloss.config import Cifar10, Cifar100, Folder, TensorImages
from normloss.config.images import class_folders, is_npz
from normloss.data import arrays
from normloss.data.pil import decode
from normloss.data.tensors import Split
from normloss.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm"}
CACHE = ".normloss"


def load(cfg: Folder, data_dir: Path) -> tuple[Split, ...]:
    """The user's own training and test images, from class folders or an .npz file; with dataset.val=file val's too.

    Where there is no test/, val/ serves as it.
    """
    if is_npz(data_dir):
        return arrays.load(cfg, data_dir)
    test = "test" if (data_dir / "test").is_dir() or not (data_dir / "val").is_dir() else "val"
    if cfg.val == "file" and test == "val":
        raise UserError(
            f"dataset.val: file needs test/ beside val/ in {data_dir}, got val/ alone, which serves as test/"
        )
    parts = [data_dir / "train", data_dir / test, *([data_dir / "val"] if cfg.val == "file" else [])]
    for part in parts[1:]:
        check_same_classes(parts[0], part)
    return tuple(read_tree(part, cfg) for part in parts)


def check_same_classes(train: Path, test: Path) -> None:
    """Labels are the folders' order, so both parts must have the same."""
    names = [{path.name for path in class_folders(root)} for root in (train, test)]
    odd = sorted(names[0] ^ names[1])
    if odd:
        raise UserError(f"{train} and {test}: must have the same class folders, only one has {' '.join(odd[:5])}")


def list_tree(root: Path, num_classes: int) -> list[tuple[Path, int]]:
    """(file, label) of every image under root/<class>/, classes and files in alphabetical order."""
    classes = class_folders(root)
    if len(classes) != num_classes:
        raise UserError(f"{root}: must hold dataset.num_classes={num_classes} class folders, got {len(classes)}")
    files = []
    for label, folder in enumerate(classes):
        named = (path for path in folder.iterdir() if not path.name.startswith("."))
        images = sorted(path for path in named if path.suffix.lower() in SUFFIXES)
        if not images:
            raise UserError(f"{folder}: no images ({' '.join(sorted(SUFFIXES))})")
        files += [(path, label) for path in images]
    return files


def read_tree(root: Path, cfg: Cifar10 | Cifar100 | Folder, per_class: int | None = None) -> Split:
    """The images of a tree as one array; per_class: how many each class must have."""
    files = list_tree(root, cfg.num_classes)
    labels = np.array([label for _, label in files], np.int64)
    if per_class is not None:
        wrong = odd_class(labels, per_class)
        if wrong is not None:
            folder = files[int((labels == wrong).argmax())][0].parent
            got = (labels == wrong).sum()
            raise UserError(f"{folder}: must hold {per_class} images for {cfg.name}, got {got}")
    cache = root.parent / CACHE / f"{root.name}-{signature(root, files, cfg)}.npz"
    images = read_cache(cache)
    if images is None:
        print(f"decoding {len(files):,} images of {root} (once)", flush=True)
        images = np.stack([decode(path, cfg.size, cfg.channels) for path, _ in files])
        write_cache(cache, images)
    return Split(images, labels)


def odd_class(labels: np.ndarray, per_class: int) -> int | None:
    """The first class with another number of images; None where all have as many."""
    odd = np.bincount(labels) != per_class
    return int(odd.argmax()) if odd.any() else None


def signature(root: Path, files: list[tuple[Path, int]], cfg: TensorImages) -> str:
    """Changes with any file's name, size or time of change, and with how it is decoded."""
    digest = hashlib.sha256(f"{cfg.size} {cfg.channels}".encode())
    for path, _ in files:
        stat = path.stat()
        digest.update(f"\n{path.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def read_cache(cache: Path) -> np.ndarray | None:
    if not cache.exists():
        return None
    try:
        with np.load(cache) as archive:  # a damaged byte fails the archive's checksum
            return archive["images"]
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, BadZipFile) as error:
        print(f"{cache}: damaged ({error}), decoding anew", flush=True)
        return None


def write_cache(cache: Path, images: np.ndarray) -> None:
    """Written whole or not at all; older caches of the same folder go."""
    partial = cache.with_name(f"{cache.name}.{os.getpid()}")
    try:
        cache.parent.mkdir(exist_ok=True)
        with open(partial, "wb") as file:
            np.savez(file, images=images)
        os.replace(partial, cache)
        for old in cache.parent.glob(f"{cache.name.rpartition('-')[0]}-*.npz"):
            if old != cache:
                old.unlink()
    except OSError as error:
        with suppress(OSError):  # a read-only folder refuses this too
            partial.unlink(missing_ok=True)
        print(f"{cache.parent}: no cache kept ({error.strerror}); the next run decodes again", flush=True)
