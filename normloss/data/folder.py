"""Class-folder trees, {train,test}/<class>/*.png|jpg|..., decoded once into a cache that notices a changed source."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np

from normloss.config import Cifar10, Cifar100, Folder, TensorImages
from normloss.config.images import class_folders, is_npz
from normloss.data import arrays
from normloss.data.decode import on_white, read_square
from normloss.data.tensors import Split
from normloss.errors import UserError
from normloss.runs.files import Damaged, load_arrays, write_arrays

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
CACHE, CACHE_VERSION = ".normloss", 2  # 2: on white, upright
NARROW = 256 // 8  # values that images may use without a remark


def load(cfg: Folder, data_dir: Path) -> tuple[Split, ...]:
    """Return the user's training and test images, from class folders or an .npz file; with dataset.val=file val's too.

    Where there is no test/, val/ serves as it. What is seldom meant is printed, a line each.
    """
    splits = arrays.load(cfg, data_dir) if is_npz(data_dir) else read_trees(cfg, data_dir)
    for remark in remarks(*splits[:2]):
        print(f"{data_dir}: {remark}", flush=True)
    return splits


def read_trees(cfg: Folder, data_dir: Path) -> tuple[Split, ...]:
    test = "test" if (data_dir / "test").is_dir() or not (data_dir / "val").is_dir() else "val"
    if cfg.val == "file" and test == "val":
        raise UserError(f"dataset.val: file needs test/ and val/ in {data_dir}, got val/ only, which serves as test/")
    parts = [data_dir / "train", data_dir / test, *([data_dir / "val"] if cfg.val == "file" else [])]
    for part in parts[1:]:
        check_same_classes(parts[0], part)
    return tuple(read_tree(part, cfg) for part in parts)


def remarks(train: Split, test: Split) -> list[str]:
    """Return what of a data set is seldom meant: labels that disagree, test images trained on, pixels nearly equal."""
    labels: dict[int, set[int]] = {}  # of each picture, by its hash
    pictures = [hash(image.tobytes()) for image in train.images]
    for picture, label in zip(pictures, train.labels.tolist(), strict=True):
        labels.setdefault(picture, set()).add(label)
    lines = []
    if torn := sum(len(labels[picture]) > 1 for picture in pictures):
        lines.append(f"{torn} of {len(pictures)} training images are identical to an image of another class")
    if seen := sum(hash(image.tobytes()) in labels for image in test.images):
        lines.append(f"{seen} of {len(test.images)} test images are training images too")
    low, high = int(train.images.min()), int(train.images.max())
    if high - low < NARROW:
        lines.append(
            f"all training images lie within {low} to {high} of 0 to 255; 16-bit files are read as 16 bits, so that"
            " 12-bit data in them have to be multiplied by 16"
        )
    return lines


def check_same_classes(train: Path, test: Path) -> None:
    """Raises UserError unless both parts have the same class folders: labels are the folders' order."""
    names = [{path.name for path in class_folders(root)} for root in (train, test)]
    odd = sorted(names[0] ^ names[1])
    if odd:
        raise UserError(f"{train} and {test}: must have the same class folders, only one has {' '.join(odd[:5])}")


def list_tree(root: Path, num_classes: int) -> list[tuple[Path, int]]:
    """Return (file, label) of every image root/<class>/*, classes and files in alphabetical order; print what else
    the class folders hold."""
    classes = class_folders(root)
    if len(classes) != num_classes:
        raise UserError(f"{root}: must hold dataset.num_classes={num_classes} class folders, got {len(classes)}")
    files, others = [], Counter[str]()
    for label, folder in enumerate(classes):
        named = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        images = [path for path in named if path.suffix.lower() in SUFFIXES]
        if not images:
            raise UserError(f"{folder}: no images ({' '.join(sorted(SUFFIXES))})")
        files += [(path, label) for path in images]
        others.update(path.suffix or "without a suffix" for path in named if path.suffix.lower() not in SUFFIXES)
    if others:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        print(f"{root}: {len(files)} images; not read: {counts}", flush=True)
    return files


def read_tree(root: Path, cfg: Cifar10 | Cifar100 | Folder) -> Split:
    """Return the images of a tree as one array, from its cache if there is a whole one."""
    files = list_tree(root, cfg.num_classes)
    cache = root.parent / CACHE / f"{root.name}-{signature(root, files, cfg)}.npz"
    try:
        found = load_arrays(cache, ("images", "transparent"))  # a damaged byte fails the archive's checksum
    except Damaged:  # or there is none
        print(f"decoding {len(files):,} images of {root} (once)", flush=True)
        decoded = [read_square(path, cfg.size, cfg.channels) for path, _ in files]
        found = {
            "images": np.stack([pixels for pixels, _ in decoded]),
            "transparent": np.array(sum(transparent for _, transparent in decoded)),
        }
        write_cache(cache, found)
    if transparent := int(found["transparent"]):
        print(f"{root}: {on_white(transparent)}", flush=True)
    labels = np.array([label for _, label in files], np.int64)
    return Split(found["images"], labels, [path.name for path in class_folders(root)])


def signature(root: Path, files: list[tuple[Path, int]], cfg: TensorImages) -> str:
    """Return a text that changes with any file's name, size or time of change, and with how it is decoded."""
    digest = hashlib.sha256(f"{CACHE_VERSION} {cfg.size} {cfg.channels}".encode())
    for path, _ in files:
        stat = path.stat()
        digest.update(f"\n{path.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def write_cache(cache: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a cache; older ones of the same folder go. Where it cannot be kept, a line says so."""
    try:
        cache.parent.mkdir(exist_ok=True)
        write_arrays(cache, arrays)
        for old in cache.parent.glob(f"{cache.name.rpartition('-')[0]}-*.npz"):
            if old != cache:
                old.unlink()
    except OSError as error:
        print(f"{cache.parent}: no cache kept ({error.strerror}); the next run decodes again", flush=True)
