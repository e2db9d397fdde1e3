"""ImageNet from files to batches: workers, streams, what can be wrong, and real photographs where they are at hand."""

import itertools
import multiprocessing
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from PIL import Image

from normloss.data import imagenet
from normloss.errors import UserError
from tests.data_support import (
    CPU,
    PHOTOS,
    ROOT,
    imagenet_config,
    imagenet_data,
    rounding_agrees,
    same,
    save_photographs,
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return save_photographs(tmp_path_factory.mktemp("imagenet"))


@pytest.mark.parametrize("workers", [0, 2])
def test_photographs_of_all_kinds_become_normalised_batches(tree, workers):
    loaded = imagenet_data(tree, workers)
    assert (loaded.train_size, loaded.test_size, loaded.steps_per_epoch) == (10, 10, 3)
    for batches in (list(loaded.train(0)), list(loaded.test())):
        assert sum(len(y) for _, y in batches) == 10
        for x, y in batches:
            assert x.shape == (len(y), 3, 24, 24) and x.isfinite().all()
            assert x.dtype == torch.float32 and y.dtype == torch.int64
            assert x.is_contiguous(memory_format=torch.channels_last)
    assert [len(y) for _, y in loaded.train(0)] == [4, 4, 2]
    assert torch.cat([y for _, y in loaded.test()]).tolist() == [0] * 4 + [1] * 6


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_of_photographs_can_be_entered_at_any_step_and_left_at_any(tree, workers):
    whole = list(imagenet_data(tree).train(5))
    loaded = imagenet_data(tree, workers)
    next(loaded.train(2))  # left, with its prefetched batches
    list(loaded.test())
    torch.manual_seed(7), np.random.seed(7)
    for first in (0, 1, 2, 3):
        assert same(loaded.train(5, first_step=first), whole[first:])


def test_epochs_and_seeds_of_photographs_differ_and_show_each_once(tree):
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        batches = imagenet.EpochBatches(seed=seed, images=10, batch_size=4)
        batches.epoch = epoch
        orders.append([i for _, i in itertools.chain(*batches)])
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    files = [(tree / "train/a/0.JPEG", 0)]
    first, other = imagenet.Crops(files, imagenet_config(), 0), imagenet.Crops(files, imagenet_config(), 1)
    assert torch.equal(first[0, 0][0], first[0, 0][0])
    assert not torch.equal(first[0, 0][0], first[1, 0][0]) and not torch.equal(first[0, 0][0], other[0, 0][0])


# what can be wrong with it


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_corrupt_photograph_is_named_in_one_line_and_leaves_no_worker_behind(tree, tmp_path, workers, split):
    root = tmp_path / "imagenet"
    shutil.copytree(tree, root)
    bad = root / split / "a/1.JPEG"
    bad.write_bytes(bad.read_bytes()[:300])
    before = set(multiprocessing.active_children())
    loaded = imagenet_data(root, workers)
    with pytest.raises(UserError) as error:
        list(loaded.train(0) if split == "train" else loaded.test())
    message = str(error.value)
    assert message.startswith(f"{bad}: not a readable image (") and "\n" not in message
    del loaded, error
    assert set(multiprocessing.active_children()) <= before


def test_a_process_ends_while_its_workers_wait(tree):
    script = (
        "import pathlib, tests.data_support as t\n"
        f"data = t.imagenet_data(pathlib.Path({str(tree)!r}), workers=1)\n"
        "next(data.train(0)); print('done')"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, env=environment, timeout=60, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


def test_a_missing_imagenet_is_one_line_with_the_ways_out(tmp_path):
    with pytest.raises(UserError) as error:
        imagenet_data(tmp_path)
    message = str(error.value)
    parts = ["no imagenet", f"{tmp_path}/train/<class>/*.JPEG", "data_dir=DIR", "train/ and val/", "dataset=digits"]
    assert "\n" not in message and all(part in message for part in parts)


def test_a_missing_val_folder_and_a_wrong_number_of_classes_are_named(tree, tmp_path):
    (tmp_path / "train").symlink_to(tree / "train")
    with pytest.raises(UserError, match=f"no folder {tmp_path}/val"):
        imagenet_data(tmp_path)
    with pytest.raises(UserError, match="train: must hold dataset.num_classes=1000 class folders, got 2"):
        imagenet_data(tree, num_classes=1000)


def test_the_fingerprint_of_photographs_changes_with_their_names(tree, tmp_path):
    shutil.copytree(tree, tmp_path / "other")
    assert imagenet_data(tree).fingerprint == imagenet_data(tmp_path / "other").fingerprint
    (tmp_path / "other/val/a/0.JPEG").rename(tmp_path / "other/val/a/00.JPEG")
    assert imagenet_data(tree).fingerprint != imagenet_data(tmp_path / "other").fingerprint


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Eight of ImageNet's own, two of them grey, as a small ImageNet of two classes."""
    if not PHOTOS.is_dir():
        pytest.skip(f"no photographs: {PHOTOS} is not there")
    photos = sorted(PHOTOS.glob("*.JPEG"))
    agreeing = [path for path in photos if rounding_agrees(*Image.open(path).size)]
    grey = [path for path in agreeing if Image.open(path).mode == "L"][:2]
    colour = [path for path in agreeing if path not in grey][:6]
    root = tmp_path_factory.mktemp("photographs")
    for split, (i, path) in itertools.product(("train", "val"), enumerate(grey + colour)):
        target = root / split / "ab"[i % 2] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return root


def test_real_photographs_are_evaluated_as_with_torchvision(photographs):
    cfg = imagenet_config(size=224, resize=256)
    ((x, y),) = imagenet.ImageNetData(cfg, photographs, 0, 4, 0, CPU).test()
    transform = T.Compose([
        T.Resize(256, T.InterpolationMode.BICUBIC), T.CenterCrop(224), T.ToTensor(),
        T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    files = sorted(photographs.glob("val/*/*"))
    assert len(files) == len(x) == 8 and y.tolist() == [0] * 4 + [1] * 4
    for image, path in zip(x, files, strict=True):
        difference = (image - transform(Image.open(path).convert("RGB"))).abs() * torch.tensor(cfg.std).view(3, 1, 1)
        assert difference.mean() < 0.1  # of 255
