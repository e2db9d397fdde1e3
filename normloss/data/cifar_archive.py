"""Krizhevsky's own files of CIFAR-10 and CIFAR-100, unpacked, as an archive, or downloaded: each known by its MD5."""

import hashlib
import os
import pickle
import shutil
import tarfile
import tempfile
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np

from normloss.data.tensors import Split
from normloss.errors import UserError

URL = "https://www.cs.toronto.edu/~kriz/"
SILENCE_SECONDS = 30  # of the host, until the download is given up


class Archive(NamedTuple):
    file: str
    md5: str
    folder: str  # that it holds
    train: dict[str, str]  # its files with their MD5
    test: dict[str, str]
    labels: str  # key of a file


ARCHIVES = {
    "cifar10": Archive(
        file="cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        labels="labels",
    ),
    "cifar100": Archive(
        file="cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        labels="fine_labels",
    ),
}


def load(name: str, data_dir: Path) -> tuple[Split, Split]:
    """Return training and test images; data_dir holds the unpacked folder, is it, or gets it; raises UserError."""
    archive = ARCHIVES[name]
    wanted = [*archive.train, *archive.test]
    folder = next((path for path in (data_dir, data_dir / archive.folder) if has_all(path, wanted)), None)
    if folder is None:
        folder = data_dir / archive.folder
        fetch(name, archive, data_dir)
        unpack(data_dir / archive.file, folder, wanted)
    return read(folder, archive.train, archive.labels), read(folder, archive.test, archive.labels)


def has_all(folder: Path, files: list[str]) -> bool:
    return all((folder / file).is_file() for file in files)


def read(folder: Path, files: dict[str, str], key: str) -> Split:
    entries = [pickle.loads(known(folder / file, md5), encoding="latin1") for file, md5 in files.items()]
    images = np.concatenate([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32)
    return Split(images, np.concatenate([entry[key] for entry in entries]).astype(np.int64))


def known(path: Path, md5: str) -> bytes:
    """Return the content of a file of this MD5, the only kind that is unpickled; raises UserError for another."""
    content = path.read_bytes()
    if hashlib.md5(content).hexdigest() != md5:
        raise UserError(f"{path}: is damaged, or another file of this name; delete it, and it is unpacked anew")
    return content


def fetch(name: str, archive: Archive, data_dir: Path) -> None:
    """Download the archive into data_dir unless it is there; raises UserError."""
    file = data_dir / archive.file
    if file.exists():
        if damage := find_damage(file, archive.md5):
            raise UserError(f"{file}: {damage}; delete it, and it is downloaded anew")
        return
    print(f"downloading {URL}{archive.file} into {data_dir}", flush=True)
    before, partial = data_dir.exists(), file.with_name(f".{file.name}.{os.getpid()}")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(URL + archive.file, timeout=SILENCE_SECONDS) as page, open(partial, "wb") as out:
            shutil.copyfileobj(page, out)
        if damage := find_damage(partial, archive.md5):
            raise OSError(f"what came {damage}")
        os.replace(partial, file)
    except (OSError, HTTPException) as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if not before:
            with suppress(OSError):
                data_dir.rmdir()
        raise UserError(
            f"no {name}: looked for {data_dir / name}/train, {data_dir}/train, {data_dir / archive.folder} and"
            f" {archive.file} in {data_dir}, and the download failed ({str(error).strip() or type(error).__name__});"
            f" put a tree {{train,test}}/<class>/*.png or {archive.file} there (data_dir=DIR),"
            " or go on at once with dataset=digits"
        ) from None


def find_damage(file: Path, md5: str) -> str | None:
    """Return what is wrong with an archive; None if nothing is."""
    with open(file, "rb") as content:
        if hashlib.file_digest(content, "md5").hexdigest() == md5:
            return None
        content.seek(0)
        page = content.read(512).lstrip().startswith(b"<")
    return "is a web page, not the archive" if page else f"is damaged or cut short ({file.stat().st_size:,} bytes)"


def unpack(file: Path, folder: Path, wanted: list[str]) -> None:
    """Unpack the archive's files into `folder`, each at once: another process may do the same."""
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{folder.name}.") as made, tarfile.open(file) as tar:
        tar.extractall(made, filter="data")
        folder.mkdir(exist_ok=True)
        for name in wanted:
            os.replace(Path(made) / folder.name / name, folder / name)
