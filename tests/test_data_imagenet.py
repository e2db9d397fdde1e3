"""ImageNet: the recipe part by part, workers, and real photographs where they are at hand."""

import itertools
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from PIL import Image

from normloss import config, data
from normloss.data import cifar, imagenet
from normloss.data.order import generator
from normloss.errors import UserError
from tests.data_support import (
    CPU,
    PHOTOS,
    ROOT,
    FakeArchive,
    cifar_config,
    pixels,
    read_config,
    same,
    save_image,
    save_tree,
    tensor_config,
)

# ImageNet ------------------------------------------------------------------------------------------


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


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    for split, (name, options) in itertools.product(("train", "val"), FILES.items()):
        save_image(root / split / name, seed=len(name), **options)
    palette = Image.fromarray(pixels(31, 45, 3)).quantize(16)
    assert palette.mode == "P"
    for split in ("train", "val"):
        palette.save(root / split / "b/2.png")
    return root


def imagenet_data(root, workers=0, seed=0, batch_size=4, **keys):
    return imagenet.ImageNetData(imagenet_config(**keys), root, seed, batch_size, workers, CPU)


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


def test_workers_change_nothing(tree):
    alone, together = imagenet_data(tree, 0), imagenet_data(tree, 2)
    for epoch in (0, 1):
        assert same(alone.train(epoch), together.train(epoch))
    assert same(alone.test(), together.test())


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
    crops = imagenet.Crops([], imagenet_config(), 0)
    batches = imagenet.EpochBatches(seed=0, images=10, batch_size=4)
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        batches.seed, batches.epoch = seed, epoch
        keys = list(itertools.chain(*batches))
        assert {e for e, _ in keys} == {epoch} and sorted(i for _, i in keys) == list(range(10))
        orders.append([i for _, i in keys])
    assert orders[0] != orders[1] != orders[2] != orders[0]
    files = [(tree / "train/a/0.JPEG", 0)]
    first, other = imagenet.Crops(files, imagenet_config(), 0), imagenet.Crops(files, imagenet_config(), 1)
    assert len(crops) == 0 and len(first) == 1
    assert torch.equal(first[0, 0][0], first[0, 0][0])
    assert not torch.equal(first[0, 0][0], first[1, 0][0]) and not torch.equal(first[0, 0][0], other[0, 0][0])


def test_batches_of_photographs_leave_the_global_random_state_alone(tree):
    before = torch.get_rng_state()
    list(imagenet_data(tree).train(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_signal_to_the_workers_is_left_to_the_parent(tree):
    loaded = imagenet_data(tree, workers=2)
    batches = loaded.train(0)
    first = [next(batches), next(batches)]  # one from each worker: both are past their start
    workers = multiprocessing.active_children()
    assert len(workers) >= 2
    for worker, number in itertools.product(workers, (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)):
        os.kill(worker.pid, number)
    time.sleep(4)  # a step of the parent's that takes its time
    assert same([*first, *batches], imagenet_data(tree).train(0))


# the recipe, a part at a time


def boxes(width, height, count=4000, min_area=0.08):
    rng = np.random.default_rng(0)
    return np.array([box for _ in range(count) if (box := imagenet.random_box(width, height, min_area, rng))])


@pytest.mark.parametrize("width, height", [(500, 375), (375, 500), (64, 64), (20, 31)])
@pytest.mark.parametrize("min_area", [0.08, 0.5])
def test_random_boxes_have_the_recipes_area_and_aspect_and_lie_inside(width, height, min_area):
    left, top, right, bottom = boxes(width, height, 1000, min_area).T
    w, h = right - left, bottom - top
    assert (left >= 0).all() and (top >= 0).all() and (right <= width).all() and (bottom <= height).all()
    assert (w > 0).all() and (h > 0).all()
    # w and h are rounded: off by half a pixel
    assert ((w + 0.5) * (h + 0.5) >= min_area * width * height).all()
    assert ((w - 0.5) * (h - 0.5) <= width * height).all()
    assert ((w + 0.5) / (h - 0.5) >= 3 / 4).all() and ((w - 0.5) / (h + 0.5) <= 4 / 3).all()


def test_random_boxes_are_uniform_in_area_and_place_and_as_often_wide_as_high():
    left, top, right, bottom = boxes(1000, 1000).T
    w, h = right - left, bottom - top
    area = w * h / 1e6
    small = area < 0.5  # these always fit: sqrt(0.5 * 4/3) < 1
    assert small.sum() > 1500
    quarters = np.histogram(area[small], bins=4, range=(0.08, 0.5))[0] / small.sum()
    assert np.abs(quarters - 0.25).max() < 0.05
    assert abs((w[small] > h[small]).mean() - 0.5) < 0.05  # without the swap 0.571
    aspect = (np.maximum(w, h) / np.minimum(w, h))[small]
    # max(a, 1/a) of a = U(3/4, 4/3): density (1 + 1/r^2) / (7/12) on 1..4/3
    assert (aspect < 7 / 6).mean() == pytest.approx((1 / 6 + 1 - 6 / 7) / (7 / 12), abs=0.05)
    for place in (left[small] / (1000 - w[small]), top[small] / (1000 - h[small])):
        assert abs(place.mean() - 0.5) < 0.03 and abs(place.std() - math.sqrt(1 / 12)) < 0.02
        assert place.min() < 0.01 and place.max() > 0.99


def test_a_box_may_be_the_whole_image_and_may_touch_each_border():
    found = boxes(3, 3, 500, min_area=0.5)
    assert {(0, 0, 3, 3), (0, 0, 2, 2), (1, 1, 3, 3)} <= {tuple(box) for box in found.tolist()}


def test_an_image_too_long_for_any_box_is_resized_and_centred(tmp_path):
    assert len(boxes(1000, 10, 50)) == 0 and len(boxes(10, 1000, 50)) == 0
    save_image(tmp_path / "long.png", size=(480, 12))
    crop, label = imagenet.Crops([(tmp_path / "long.png", 1)], imagenet_config(), 0)[0, 0]
    expected = T.Compose([T.Resize(24, T.InterpolationMode.BICUBIC), T.CenterCrop(24)])(
        Image.open(tmp_path / "long.png")
    )
    np.testing.assert_array_equal(crop.permute(1, 2, 0).numpy(), np.asarray(expected))
    assert label == 1


def test_a_crop_shows_what_lies_in_its_box(tmp_path):
    """Red tells x and green y, so a crop tells where it is from."""
    width, height = 240, 180
    y, x = np.mgrid[:height, :width]
    Image.fromarray(np.stack([x, y, 0 * x], 2).astype(np.uint8)).save(tmp_path / "map.png")
    crops = imagenet.Crops([(tmp_path / "map.png", 0)], imagenet_config(), seed=3)
    for epoch in range(20):
        left, top, right, bottom = imagenet.random_box(width, height, 0.08, np.random.default_rng((3, epoch, 0)))
        red, green, _ = crops[epoch, 0][0].double().numpy()
        at = (np.arange(24) + 0.5) / 24
        columns, rows = left + at * (right - left) - 0.5, top + at * (bottom - top) - 0.5
        inner = slice(3, -3)  # bicubic ramps bend at the image's border
        assert np.abs(red[inner, inner] - columns[None, inner]).max() <= 1
        assert np.abs(green[inner, inner] - rows[inner, None]).max() <= 1


def rounding_agrees(width, height, short_side=256, size=224):
    """torchvision rounds the long side down and half an offset to even, we to the nearest and down."""
    long_side = short_side * max(width, height) / min(width, height)
    spare = round(long_side) - size
    return int(long_side) == round(long_side) and round(spare / 2) == spare // 2


SIZES = [(500, 375), (375, 500), (300, 300), (256, 256), (512, 256), (600, 400), (100, 150), (224, 448), (640, 480)]


@pytest.mark.parametrize("size", SIZES)
def test_the_centre_crop_equals_torchvisions(size):
    assert rounding_agrees(*size)
    image = Image.fromarray(pixels(size[1], size[0], 3))
    expected = T.Compose([T.Resize(256, T.InterpolationMode.BICUBIC), T.CenterCrop(224)])(image)
    np.testing.assert_array_equal(np.asarray(imagenet.resize_and_centre(image, 256, 224)), np.asarray(expected))


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (7, 5), (257, 999), (223, 224)])
def test_the_centre_crop_of_any_image_has_the_right_size(size):
    assert imagenet.resize_and_centre(Image.new("RGB", size), 28, 24).size == (24, 24)


def brightness(x, a):
    return a * x


def contrast(x, a):
    grey = 0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]
    return a * x + (1 - a) * grey.mean()


def saturation(x, a):
    grey = 0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]
    return a * x + (1 - a) * grey


def replay_jitter(images, strength, g):
    """The factor of each operation, (images, 3), from the generator."""
    factors = 1 + strength * (2 * torch.rand(3, images, 1, 1, 1, generator=g) - 1)
    return factors.double().numpy().reshape(3, images).T


def slow_jitter(x, strength, g):
    factors, out = replay_jitter(len(x), strength, g), []
    orders = np.random.default_rng(0).permuted(np.tile(range(3), (len(x), 1)), axis=1)  # fb's random order
    for image, a, order in zip(x.double().numpy(), factors, orders, strict=True):
        for operation in order:
            image = (brightness, contrast, saturation)[operation](image, a[operation])
        out.append(image)
    return np.stack(out)


def test_colour_jitter_equals_an_operation_and_an_image_at_a_time():
    x = torch.rand(40, 3, 5, 5, generator=generator(0))
    jittered = imagenet.color_jitter(x, 0.4, generator(1)).numpy()
    np.testing.assert_allclose(jittered, slow_jitter(x, 0.4, generator(1)), rtol=0, atol=1e-6)
    assert jittered.max() > 1  # nothing is clamped, as in fb.resnet.torch


def test_colour_jitter_is_the_same_in_any_order():
    """Nothing is clamped, so the three operations commute."""
    x = torch.rand(10, 3, 5, 5, generator=generator(0))
    jittered = imagenet.color_jitter(x, 0.4, generator(1)).numpy()
    factors = replay_jitter(10, 0.4, generator(1))
    for n, order in itertools.product(range(10), itertools.permutations(range(3))):
        image = x[n].double().numpy()
        for operation in order:
            image = (brightness, contrast, saturation)[operation](image, factors[n, operation])
        np.testing.assert_allclose(jittered[n], image, rtol=0, atol=1e-6)


def test_colour_jitter_of_strength_zero_changes_nothing():
    x = torch.rand(4, 3, 5, 5)
    torch.testing.assert_close(imagenet.color_jitter(x, 0.0, generator(1)), x, rtol=0, atol=0)


def test_brightness_is_uniform_and_all_that_an_even_grey_image_feels():
    factors = imagenet.color_jitter(torch.full((5000, 3, 2, 2), 0.5), 0.4, generator(1)) / 0.5
    assert (factors - factors[:, :1, :1, :1]).abs().max() < 1e-5
    factors = factors[:, 0, 0, 0]
    assert 0.6 <= factors.min() < 0.61 and 1.39 < factors.max() <= 1.4 + 1e-6
    assert abs(factors.mean() - 1) < 0.02 and abs(factors.std() - 0.8 / math.sqrt(12)) < 0.01


VALUES = [0.2175, 0.0188, 0.0045]  # fb.resnet.torch datasets/imagenet.lua
VECTORS = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]  # [colour][component]


def slow_lighting(images, sigma, g):
    alpha = (sigma * torch.randn(images, 3, generator=g)).tolist()
    return np.array([
        [sum(a[k] * VALUES[k] * VECTORS[colour][k] for k in range(3)) for colour in range(3)] for a in alpha
    ]).reshape(images, 3, 1, 1)  # fmt: skip


def test_lighting_is_the_sum_over_principal_components():
    shift = imagenet.lighting(20, 0.1, generator(1)).numpy()
    assert shift.shape == (20, 3, 1, 1)
    np.testing.assert_allclose(shift, slow_lighting(20, 0.1, generator(1)), rtol=0, atol=1e-7)
    assert not imagenet.lighting(20, 0.0, generator(1)).any()


def test_lighting_has_the_covariance_of_its_components():
    shift = imagenet.lighting(50_000, 0.1, generator(1)).view(-1, 3).double()
    vectors = torch.tensor(VECTORS, dtype=torch.float64)
    expected = vectors @ torch.diag((0.1 * torch.tensor(VALUES, dtype=torch.float64)) ** 2) @ vectors.T
    assert shift.mean(0).abs().max() < 5e-4
    torch.testing.assert_close(shift.T.cov(), expected, rtol=0, atol=0.03 * expected.max().item())


def test_training_batches_are_crops_jittered_lit_flipped_and_normalised(tree):
    cfg = imagenet_config()
    crops = imagenet.Crops(imagenet.list_tree(tree / "train", 2), cfg, seed=0)
    order = torch.randperm(10, generator=generator(0, 1)).tolist()
    flipped = 0
    for step, (x, y) in enumerate(imagenet_data(tree).train(1)):
        chosen = order[4 * step : 4 * step + 4]
        pairs = [crops[1, i] for i in chosen]
        g = generator(0, 1, step)
        images = slow_jitter(torch.stack([crop for crop, _ in pairs]).float() / 255, cfg.color_jitter, g)
        images = images + slow_lighting(len(x), cfg.lighting, g)
        for n, flip in enumerate((torch.rand(len(x), generator=g) < cfg.flip).tolist()):
            image = images[n, :, :, ::-1] if flip else images[n]
            mean, std = (np.array(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
            np.testing.assert_allclose(x[n].numpy(), (image - mean) / std, rtol=0, atol=1e-4)
            flipped += flip
        assert y.tolist() == [label for _, label in pairs]
    assert 0 < flipped < 10


@pytest.mark.parametrize("name, colour", [("CMYK", (0, 255, 255)), ("L", (90, 90, 90)), ("P", (255, 0, 0))])
def test_other_modes_keep_their_colours(tmp_path, name, colour):
    fill = {"CMYK": (255, 0, 0, 0), "L": 90, "P": 1}[name]
    image = Image.new(name, (20, 20), fill)
    if name == "P":
        image.putpalette([0, 0, 0, 255, 0, 0])
    path = tmp_path / f"x.{'png' if name == 'P' else 'jpg'}"
    image.save(path)
    found = np.asarray(imagenet.open_image(path)).astype(int)
    assert found.shape == (20, 20, 3) and np.abs(found - colour).max() <= 2


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
        "import pathlib, tests.test_data_imagenet as t\n"
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


def test_the_constants_of_imagenet_are_the_recipes():
    values = read_config("imagenet")
    np.testing.assert_allclose(np.array(values["mean"]) / 255, [0.485, 0.456, 0.406], atol=1e-6)
    np.testing.assert_allclose(np.array(values["std"]) / 255, [0.229, 0.224, 0.225], atol=1e-6)
    recipe = dict(size=224, resize=256, min_area=0.08, color_jitter=0.4, lighting=0.1, flip=0.5)
    assert {key: values[key] for key in recipe} == recipe


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
        torch.testing.assert_close(image, transform(Image.open(path).convert("RGB")), rtol=0, atol=1e-5)


def test_real_photographs_are_trained_on(photographs):
    cfg = imagenet_config(size=224, resize=256)
    alone, together = (imagenet.ImageNetData(cfg, photographs, 0, 3, workers, CPU) for workers in (0, 2))
    batches = list(alone.train(0))
    assert [x.shape for x, _ in batches] == [(3, 3, 224, 224), (3, 3, 224, 224), (2, 3, 224, 224)]
    assert same(together.train(0, first_step=1), batches[1:])
    x = torch.cat([x for x, _ in batches])
    assert x.mean().abs() < 1 and 0.4 < x.std() < 2  # pixels of photographs, normalised


# the data set of a config --------------------------------------------------------------------------


def run_config(dataset, data_dir):
    return SimpleNamespace(
        dataset=dataset, data_dir=str(data_dir), seed=0, workers=0, train=SimpleNamespace(batch_size=4)
    )


def test_build_makes_the_data_set_that_the_config_names(tree, tmp_path, monkeypatch):
    save_tree(tmp_path / "mine/train"), save_tree(tmp_path / "mine/test", images=1)
    monkeypatch.setenv("HOME", str(tmp_path))
    mine = data.build(run_config(tensor_config(), "~/mine"), CPU)
    assert (mine.train_size, mine.test_size, mine.steps_per_epoch) == (6, 3, 2)
    eight = data.build(run_config(config.Digits(**read_config("digits")), "nowhere"), CPU)
    assert (eight.train_size, eight.test_size) == (1437, 360)
    assert data.build(run_config(imagenet_config(), tree), CPU).train_size == 10
    monkeypatch.setitem(cifar.ARCHIVES, "cifar100", FakeArchive)
    assert data.build(run_config(cifar_config("cifar100"), tmp_path), CPU).train_size == 5
