"""Shared by the tests of normloss.data: configs, trees and pictures made on the spot."""

import hashlib
import io
import itertools
import pickle
import shutil
import tarfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import yaml
from PIL import Image

from normloss import config
from normloss.data import cifar_archive
from normloss.data.imagenet import ImageNetData, Photographs, random_crop
from normloss.data.tensors import Split, TensorData

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
TREE = ("dataset=folder", "dataset.size=6", "dataset.pad=0", "model=resnet8", "recipe=cifar10_resnet110")
PHOTOGRAPHS = (
    "dataset=imagenet", "dataset.num_classes=2", "dataset.label=mine", "dataset.size=24", "dataset.resize=28",
    "model=resnet8", "recipe=cifar10_resnet110", "train.milestones=[]", "train.batch_size=2",
)  # fmt: skip


def read_config(name, **keys):
    values = yaml.safe_load((ROOT / f"configs/dataset/{name}.yaml").read_text())
    return values | keys


def tensor_config(**keys):
    values = dict(num_classes=3, size=6, pad=2, padding="zero", mean=[10.4, 120.0, 200.6], std=[1.0, 2.0, 50.0])
    return config.Folder(**read_config("folder", label="mine") | values | keys)


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def tensor_data(cfg, images=11, batch_size=4, seed=0, test_images=3, device=CPU):
    C, S = cfg.channels, cfg.size
    train = Split(pixels(images, C, S, S), np.arange(images) % cfg.num_classes)
    test = Split(pixels(test_images, C, S, S, seed=1), np.arange(test_images) % cfg.num_classes)
    return TensorData(cfg, train, test, seed, batch_size, device)


def same(batches, others):
    batches, others = list(batches), list(others)
    return len(batches) == len(others) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(batches, others, strict=True)
    )


def positions(cfg, images, batch_size=4, epoch=0, seed=0):
    """Which image is at each position of an epoch: image i holds i in every pixel, and nothing is done to it."""
    cfg = cfg.model_copy(update=dict(pad=0, flip=0.0, mean=[0.0] * 3, std=[1.0] * 3))
    ramp = np.arange(images, dtype=np.uint8).reshape(-1, 1, 1, 1) * np.ones((1, 3, cfg.size, cfg.size), np.uint8)
    split = Split(ramp, np.arange(images))
    batches = list(TensorData(cfg, split, split, seed, batch_size, CPU).train(epoch))
    assert all((x == y.view(-1, 1, 1, 1)).all() for x, y in batches)
    return [y.tolist() for _, y in batches]


def saved(image, suffix="png", **options):
    """The content of the image's file."""
    file = io.BytesIO()
    image.save(file, {"jpg": "JPEG"}.get(suffix, suffix), **options)
    return file.getvalue()


def save_image(path, size=(6, 6), mode="RGB", seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], bands) if bands > 1 else (size[1], size[0])
    image = Image.fromarray(pixels(*shape, seed=seed), mode=None if mode != "CMYK" else "CMYK")
    image.save(path, **options)
    return np.asarray(image)


def save_tree(root, classes=("cat", "dog", "emu"), images=2, suffix="png", **options):
    """{(class, i): pixels} of the files written."""
    return {
        (name, i): save_image(root / name / f"{i}.{suffix}", seed=10 * k + i, **options)
        for k, name in enumerate(classes)
        for i in range(images)
    }


def cifar_config(name="cifar10", **keys):
    section = {"cifar10": config.Cifar10, "cifar100": config.Cifar100}[name]
    return section(**read_config(name, padding="zero", **keys))


def save_archive(monkeypatch, data_dir, name="cifar10", packed=True):
    """A small archive in Krizhevsky's form, that the table of checksums knows: its images (N, 3, 32, 32) and labels."""
    archive = cifar_archive.ARCHIVES[name]
    folder = data_dir / archive.folder
    folder.mkdir(parents=True)
    sums, contents = {}, []
    for seed, file in enumerate([*archive.train, *archive.test]):
        images, labels = pixels(3, 3 * 32 * 32, seed=seed), [seed, 1, 4]
        content = pickle.dumps({"data": images, archive.labels: labels}, protocol=2)
        content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")  # as numpy 1 called it
        (folder / file).write_bytes(content)
        sums[file] = hashlib.md5(content).hexdigest()
        contents.append((images.reshape(-1, 3, 32, 32), labels))
    with tarfile.open(data_dir / archive.file, "w:gz") as tar:
        tar.add(folder, archive.folder)
    md5 = hashlib.md5((data_dir / archive.file).read_bytes()).hexdigest()
    train, test = ({file: sums[file] for file in part} for part in (archive.train, archive.test))
    monkeypatch.setitem(cifar_archive.ARCHIVES, name, archive._replace(md5=md5, train=train, test=test))
    if packed:
        shutil.rmtree(folder)
    else:
        (data_dir / archive.file).unlink()
    images, labels = zip(*contents, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def imagenet_config(**keys):
    return config.ImageNet(**read_config("imagenet", num_classes=2, label="mine") | dict(size=24, resize=28) | keys)


FILES = {
    "a/0.JPEG": dict(size=(61, 47)),
    "a/1.JPEG": dict(size=(40, 90), mode="L"),
    "a/2.JPEG": dict(size=(53, 41), mode="CMYK"),
    "a/3.JPEG": dict(size=(24, 24)),
    "b/0.JPEG": dict(size=(200, 9)),
    "b/1.JPEG": dict(size=(13, 17)),
    "b/3.jpg": dict(size=(33, 100)),
    "b/4.png": dict(size=(50, 37), mode="RGBA"),
    "b/5.png": dict(size=(28, 31), mode="L"),
}


def save_photographs(root):
    """{train,val}/{a,b}/*: ten pictures of every kind, the same in both."""
    for split, (name, options) in itertools.product(("train", "val"), FILES.items()):
        save_image(root / split / name, seed=len(name), **options)
    palette = Image.fromarray(pixels(31, 45, 3)).quantize(16)
    assert palette.mode == "P"
    for split in ("train", "val"):
        palette.save(root / split / "b/2.png")
    return root


def imagenet_data(root, workers=0, seed=0, batch_size=4, **keys):
    sizes = SimpleNamespace(batch_size=batch_size, micro_batch=None)
    parts = dict(dataset=imagenet_config(**keys), data_dir=str(root), seed=seed, workers=workers, train=sizes)
    return ImageNetData(SimpleNamespace(**parts), CPU)


def crops_of(files, cfg, seed):
    """(epoch, image) -> a random crop of training, and its label."""
    photographs = Photographs(files, partial(random_crop, cfg, seed))
    return lambda epoch, image: photographs[epoch * len(files) + image]


def smooth(width, height, seed=0):
    """A picture with soft edges in every place and colour, as photographs have."""
    small = Image.fromarray(pixels(max(2, height // 8), max(2, width // 8), 3, seed=seed))
    return small.resize((width, height), Image.Resampling.BICUBIC)
