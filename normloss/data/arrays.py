"""One .npz file of arrays as a data set, in the form of MedMNIST (normloss/config/images.py); written from a tree.

Shapes: N images, C channels, S = size.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from normloss.config import TensorImages
from normloss.config.images import Npz
from normloss.data.decode import fit, flatten, on_white
from normloss.data.tensors import Split
from normloss.errors import UserError
from normloss.runs.files import write_arrays

PARTS = "train", "test", "val"


def load(cfg: TensorImages, path: Path) -> tuple[Split, ...]:
    """Return a file's training and test images, with dataset.val=file its val_images; others are resized as a tree's.

    Raises UserError that names the bad array.
    """
    file = Npz(path)
    return tuple(read(file, part, cfg) for part in (PARTS if cfg.val == "file" else PARTS[:2]))


def read(file: Npz, part: str, cfg: TensorImages) -> Split:
    name = f"{part}_images"
    images = file.read(name)
    shape, dtype = images.shape, images.dtype
    if dtype != np.uint8 or len(shape) not in (3, 4) or shape[3:] not in ((), (1,), (3,), (4,)) or 0 in shape:
        raise UserError(f"{file.path}: {name} must be uint8 (N, H, W) or (N, H, W, 1, 3 or 4), got {dtype} {shape}")
    labels = file.labels(part, cfg.num_classes)
    if len(labels) != shape[0]:
        raise UserError(f"{file.path}: {part}_labels must be as many as {name}, {shape[0]}, got {len(labels)}")
    if shape[3:] == (1,):
        images = images[..., 0]
    size = (cfg.size, cfg.size)
    classes = file.text("classes") if "classes" in file else None
    if images.shape[1:] == (*size, 3) and cfg.channels == 3:
        return Split(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels, classes)
    if images.shape[1:] == size and cfg.channels == 1:
        return Split(images[:, None], labels, classes)
    flat = [flatten(Image.fromarray(image)) for image in images]
    if transparent := sum(seen_through for _, seen_through in flat):
        print(f"{file.path}: {name}: {on_white(transparent)}", flush=True)
    return Split(np.stack([fit(image, cfg.size, cfg.channels) for image, _ in flat]), labels, classes)


def write(splits: Sequence[Split], path: Path, names: tuple[str, list[str]] | None = None) -> None:
    """Write training, test and perhaps held-out images as one file; names: the label and the classes."""
    arrays: dict[str, Any] = {}
    if names:
        arrays = {"label": np.array(names[0]), "classes": np.array(names[1])}
    for part, split in zip(PARTS, splits, strict=False):
        images = split.images.transpose(0, 2, 3, 1)  # (N, S, S, C)
        arrays[f"{part}_images"] = images[..., 0] if images.shape[3] == 1 else images
        arrays[f"{part}_labels"] = split.labels
    write_arrays(path, arrays, np.savez_compressed)
