"""Packed data sets: which files they are in and what their indices say. torch-free; pixels: normloss/data/packed.py.

A pack is a few zip files, pack-<name>-<i>.zip, of sheets: grids of images as lossless WebP. Each file's index.json
says what the whole set is and which of its sheets the file holds.
"""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normloss.errors import UserError

INDEX = "index.json"


@dataclass(frozen=True)
class Pack:
    """The files of one packed data set, with their indices; `read` makes sure that all are there."""

    files: dict[Path, dict[str, Any]]

    @property
    def about(self) -> dict[str, Any]:
        """name, label, num_classes, channels, size, images (by split), fingerprint: equal in every file."""
        return next(iter(self.files.values()))["about"]


def find(data_dir: Path, name: str) -> Pack | None:
    """The packed set `name` in data_dir; None where there is none. Raises UserError for parts that do not fit."""
    paths = sorted(data_dir.glob(f"pack-{name}-*.zip"))
    if not paths:
        return None
    pack = Pack({path: _index(path) for path in paths})
    if any(index["about"] != pack.about for index in pack.files.values()):
        raise UserError(f"{data_dir}: its pack-{name}-*.zip are parts of different packs")
    there = {"train": 0, "test": 0}
    for index in pack.files.values():
        for sheet in index["sheets"]:
            there[sheet["split"]] += sheet["count"]
    if there != pack.about["images"]:
        have, want = sum(there.values()), sum(pack.about["images"].values())
        raise UserError(
            f"{data_dir}: its pack-{name}-*.zip hold {have:,} of {want:,} images: put the other files there"
        )
    return pack


def _index(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(INDEX))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a whole pack ({error})") from None
