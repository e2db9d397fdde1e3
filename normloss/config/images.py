"""A user's images before they are read, their classes and label: a class-folder tree, or one .npz file of arrays.

The file has the form of MedMNIST: train_images, test_images and perhaps val_images, uint8 (N, H, W) or (N, H, W, C),
with train_labels, test_labels and val_labels, integers (N,) or (N, 1). `label` and `classes`, which scripts/npz.py
adds, name the tree that it was made of. Nothing in it is unpickled.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from normloss.errors import UserError


class Npz:
    """The arrays of an .npz file, of which nothing is unpickled; UserError names the file and the array."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self.report_damage():
            self.file = np.load(path, allow_pickle=False)
            self.names: list[str] = self.file.files

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def read(self, name: str) -> np.ndarray:
        """Return an array; raises UserError unless it is there, whole and plain data."""
        if name not in self:
            raise UserError(f"{self.path}: has no array {name}; there are: {' '.join(self.names)}")
        with self.report_damage(name):
            array: np.ndarray = self.file[name]
            return array

    def labels(self, part: str, num_classes: int | None = None) -> np.ndarray:
        """Return int64 (N,); train's must hold each of 0..num_classes-1, the other parts' no other."""
        name = f"{part}_labels"
        labels = self.read(name)
        shape, dtype = labels.shape, labels.dtype
        if dtype.kind not in "iu" or shape[1:] not in ((), (1,)) or not shape or not shape[0]:
            raise UserError(f"{self.path}: {name} must be integers (N,) or (N, 1), one per image, got {dtype} {shape}")
        labels = labels.reshape(-1)
        there = np.unique(labels)
        classes = num_classes or len(there)
        whole = part == "train"
        if there[0] < 0 or there[-1] >= classes or (whole and len(there) < classes):
            some = f"{' '.join(map(str, there[:12]))}{' ...' if len(there) > 12 else ''}"
            each = ", each at least once" if whole else ", as in train_labels"
            raise UserError(f"{self.path}: {name} must hold 0 to {classes - 1}{each}, got {some}")
        return labels.astype(np.int64)

    def text(self, name: str) -> list[str]:
        """Return the strings of `label` or `classes`."""
        return [str(one) for one in self.read(name).reshape(-1)]

    @contextmanager
    def report_damage(self, name: str = "") -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  a damaged file fails in any way
            what = f"{name} cannot be read" if name else "not a readable .npz file"
            reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{self.path}: {what} ({reason})") from None


def is_npz(data_dir: Path) -> bool:
    """Return whether data_dir means one file of arrays, there or not, and not a folder."""
    return os.path.isfile(data_dir) or (data_dir.suffix.lower() == ".npz" and not os.path.isdir(data_dir))


def folder_label(data_dir: Path) -> str:
    """Return the name of a user's images in a run's id: the folder's, also of a file that was made of it."""
    if is_npz(data_dir):
        file = Npz(data_dir)
        return file.text("label")[0] if "label" in file else data_dir.stem
    return data_dir.resolve().name


def count_classes(data_dir: Path) -> int:
    """Return the number of classes of a user's images, where dataset.num_classes is not given."""
    if is_npz(data_dir):
        file = Npz(data_dir)
        return len(file.text("classes")) if "classes" in file else int(file.labels("train").max()) + 1
    return len(class_folders(data_dir / "train"))


def class_folders(root: Path) -> list[Path]:
    """Return the folders in root but hidden ones, sorted; raises UserError for a link that leads nowhere."""
    try:
        entries = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(
            f"no folder {root} that can be read ({error.strerror}): data_dir must hold train/ and test/ (or val/), each"
            " with one folder per class; dataset=digits needs none"
        ) from None
    for path in entries:
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path}: must be a folder of images, got a symbolic link that leads nowhere")
    return [path for path in entries if path.is_dir()]
