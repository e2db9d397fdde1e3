"""A data set of small images in a few files of a chosen size, pixel for pixel: scripts/pack_data.py writes them.

Shapes: N images of a sheet, C channels, S = size.
"""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from normloss.data.tensors import Split, fingerprint
from normloss.errors import UserError
from normloss.packs import INDEX, Pack

IMAGES, COLUMNS = 1000, 40  # of a sheet


def write(
    train: Split, test: Split, name: str, num_classes: int, out: Path, part_bytes: int, label: str | None = None
) -> list[Path]:
    """pack-<name>-1.zip, ... in `out`, each at most about part_bytes; returns their paths.

    label: that of a user's folder in the identity of runs.
    """
    about = {
        "name": name,
        "label": label,
        "num_classes": num_classes,
        "channels": train.images.shape[1],
        "size": train.images.shape[2],
        "images": {"train": len(train.labels), "test": len(test.labels)},
        "fingerprint": fingerprint(train, test),
    }
    parts: list[list[tuple[dict[str, Any], bytes]]] = [[]]
    used = 0
    for sheet, content in _sheets({"train": train, "test": test}):
        if parts[-1] and used + len(content) > part_bytes:
            parts.append([])
            used = 0
        parts[-1].append((sheet, content))
        used += len(content)
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"pack-{name}-{i}.zip" for i in range(1, len(parts) + 1)]
    for path, part in zip(paths, parts, strict=True):
        with zipfile.ZipFile(path, "w") as archive:  # stored: WebP does not shrink further
            archive.writestr(INDEX, json.dumps({"about": about, "sheets": [sheet for sheet, _ in part]}))
            for sheet, content in part:
                archive.writestr(sheet["file"], content)
    return paths


def read(pack: Pack) -> tuple[Split, Split]:
    """Training and test images in the order they were packed in; raises UserError for a damaged file."""
    about = pack.about
    shape = (about["channels"], about["size"], about["size"])
    splits = {
        split: Split(np.empty((count, *shape), np.uint8), np.empty(count, np.int64))
        for split, count in about["images"].items()
    }
    for path, index in pack.files.items():
        try:
            with zipfile.ZipFile(path) as archive:
                for sheet in index["sheets"]:
                    split, place = splits[sheet["split"]], slice(sheet["first"], sheet["first"] + sheet["count"])
                    split.images[place] = _tiles(archive.read(sheet["file"]), sheet, *shape)
                    split.labels[place] = sheet["labels"]
        except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{path}: damaged ({error}); fetch it again") from None
    train, test = splits["train"], splits["test"]
    if fingerprint(train, test) != about["fingerprint"]:
        raise UserError(
            f"{', '.join(map(str, pack.files))}: these are not the pixels that were packed; fetch them again"
        )
    return train, test


def _sheets(splits: dict[str, Split]) -> Iterator[tuple[dict[str, Any], bytes]]:
    for name, split in splits.items():
        for first in range(0, len(split.labels), IMAGES):
            images, labels = split.images[first : first + IMAGES], split.labels[first : first + IMAGES]
            file = f"{name}/{first:08d}.webp"
            sheet = {"file": file, "split": name, "first": first, "count": len(labels), "labels": labels.tolist()}
            yield sheet | {"sha256": hashlib.sha256(np.ascontiguousarray(images)).hexdigest()}, _webp(images)


def _webp(images: np.ndarray) -> bytes:
    """uint8 (N, C, S, S), N at most IMAGES -> a grid of them, COLUMNS a row, as lossless WebP."""
    n, channels, size, _ = images.shape
    rows = -(-n // COLUMNS)
    grid = np.zeros((rows * COLUMNS, channels, size, size), np.uint8)
    grid[:n] = images
    grid = grid.reshape(rows, COLUMNS, channels, size, size).transpose(0, 3, 1, 4, 2)  # (rows, S, COLUMNS, S, C)
    pixels = grid.reshape(rows * size, COLUMNS * size, channels)
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    image.convert("RGB").save(buffer, "WEBP", lossless=True, quality=80, method=4)
    return buffer.getvalue()


def _tiles(content: bytes, sheet: dict[str, Any], channels: int, size: int, _: int) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image.convert("RGB"))[:, :, :channels]
    rows = pixels.shape[0] // size
    grid = pixels.reshape(rows, size, COLUMNS, size, channels).transpose(0, 2, 4, 1, 3)  # (rows, COLUMNS, C, S, S)
    images = np.ascontiguousarray(grid.reshape(-1, channels, size, size)[: sheet["count"]])
    if hashlib.sha256(images).hexdigest() != sheet["sha256"]:
        raise ValueError(f"{sheet['file']} has other pixels")
    return images
