"""Krizhevsky's own files of CIFAR-10 and CIFAR-100, unpacked, as an archive, or downloaded: each known by its MD5."""

import hashlib
import io
import pickle
import tarfile
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np

from normloss.data.tensors import Split
from normloss.errors import UserError
from normloss.runs.files import write_whole

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
    places = (data_dir, data_dir / archive.folder)
    folder = next((path for path in places if all((path / file).is_file() for file in wanted)), None)
    if folder is None:
        folder = data_dir / archive.folder
        content = fetch(name, archive, data_dir)
        folder.mkdir(exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            for file in wanted:
                member = tar.extractfile(f"{archive.folder}/{file}")
                assert member is not None  # the MD5 is the published archive's
                write_whole(folder / file, member.read())
    return read(folder, archive.train, archive.labels), read(folder, archive.test, archive.labels)


def read(folder: Path, files: dict[str, str], key: str) -> Split:
    entries = [pickle.loads(known(folder / file, md5), encoding="latin1") for file, md5 in files.items()]
    images = np.concatenate([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32)
    return Split(images, np.concatenate([entry[key] for entry in entries]).astype(np.int64))


def known(path: Path, md5: str) -> bytes:
    """Return the content of a file of this MD5, the only kind that is unpickled; raises UserError for another."""
    content = path.read_bytes()
    if damage := find_damage(content, md5):
        raise UserError(f"{path}: {damage}; delete it, and it is fetched anew")
    return content


def find_damage(content: bytes, md5: str) -> str | None:
    """Return what is wrong with a file; None if nothing is."""
    if hashlib.md5(content).hexdigest() == md5:
        return None
    page = content[:512].lstrip().startswith(b"<")
    return "is a web page, not the archive" if page else f"is damaged or another file ({len(content):,} bytes)"


def fetch(name: str, archive: Archive, data_dir: Path) -> bytes:
    """Return the archive's content, downloaded into data_dir unless it is there; raises UserError."""
    file = data_dir / archive.file
    if file.exists():
        return known(file, archive.md5)
    print(f"downloading {URL}{archive.file} into {data_dir}", flush=True)
    try:
        with urllib.request.urlopen(URL + archive.file, timeout=SILENCE_SECONDS) as page:
            content: bytes = page.read()
        if damage := find_damage(content, archive.md5):
            raise OSError(f"what came {damage}")
        data_dir.mkdir(parents=True, exist_ok=True)
        write_whole(file, content)
    except (OSError, HTTPException) as error:
        raise UserError(
            f"no {name}: looked for {data_dir / name}/train, {data_dir}/train, {data_dir / archive.folder} and"
            f" {archive.file} in {data_dir}, and the download failed ({str(error).strip() or type(error).__name__});"
            f" put a tree {{train,test}}/<class>/*.png or {archive.file} there (data_dir=DIR),"
            " or use dataset=digits, which needs no download"
        ) from None
    return content
