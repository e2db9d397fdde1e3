"""ImageNet from files to batches: crops, colours and flips against references, workers, what can be wrong."""

import itertools
import math
import multiprocessing
import shutil

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from PIL import Image

from normloss.data import imagenet
from normloss.data.tensors import generator
from normloss.errors import UserError
from tests.conftest import ran, refused
from tests.data_support import crops_of, imagenet_config, imagenet_data, same, save_image, save_photographs, smooth

BICUBIC = T.InterpolationMode.BICUBIC
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return save_photographs(tmp_path_factory.mktemp("imagenet"))


def slow_jitter(x, strength, g):
    """fb.resnet.torch's three operations in its random order."""
    factors = 1 + strength * (2 * torch.rand(3, len(x), generator=g).double().numpy().T - 1)
    orders = np.random.default_rng(0).permuted(np.tile(range(3), (len(x), 1)), axis=1)
    out = []
    for image, a, order in zip(x.double().numpy(), factors, orders, strict=True):
        for operation in order:
            grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
            target = (0, grey.mean(), grey)[operation]  # of brightness, contrast, saturation
            image = a[operation] * image + (1 - a[operation]) * target
        out.append(image)
    return np.stack(out)


VALUES = [0.2175, 0.0188, 0.0045]  # fb.resnet.torch datasets/imagenet.lua
VECTORS = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]  # [colour][component]


def slow_lighting(images, sigma, g):
    alpha = (sigma * torch.randn(images, 3, generator=g)).tolist()
    return np.array([
        [sum(a[k] * VALUES[k] * VECTORS[colour][k] for k in range(3)) for colour in range(3)] for a in alpha
    ]).reshape(images, 3, 1, 1)  # fmt: skip


def test_training_batches_are_crops_jittered_lit_flipped_and_normalised(tree):
    cfg = imagenet_config()
    crop = crops_of(imagenet.list_tree(tree / "train", 2), cfg, seed=0)
    order = torch.randperm(10, generator=generator(0, 1)).tolist()
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (MEAN, STD))
    flipped, brightest = 0, 0
    for step, (x, y) in enumerate(imagenet_data(tree).train(1)):
        assert x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last)
        pairs = [crop(1, i) for i in order[4 * step : 4 * step + 4]]
        g = generator(0, 1, step)
        images = slow_jitter(torch.stack([crop for crop, _ in pairs]).float() / 255, cfg.color_jitter, g)
        images = images + slow_lighting(len(x), cfg.lighting, g)
        for n, flip in enumerate((torch.rand(len(x), generator=g) < cfg.flip).tolist()):
            image = images[n, :, :, ::-1] if flip else images[n]
            np.testing.assert_allclose(x[n].numpy(), (image - mean) / std, rtol=0, atol=1e-4)
            flipped, brightest = flipped + flip, max(brightest, image.max())
        assert y.tolist() == [label for _, label in pairs]
    assert step == 2 and 0 < flipped < 10 and brightest > 1  # nothing is clamped, as in fb.resnet.torch


def difference(found, image):
    """Of uint8 (3, H, W) from a PIL image, absolute, in steps of 255."""
    return np.abs(found.permute(1, 2, 0).numpy().astype(int) - np.asarray(image).astype(int))


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


def test_an_image_too_long_for_any_box_is_resized_and_centred(tmp_path):
    assert len(boxes(1000, 10, 50)) == 0 and len(boxes(10, 1000, 50)) == 0
    save_image(tmp_path / "long.png", size=(480, 12))
    crop, label = crops_of([(tmp_path / "long.png", 1)], imagenet_config(), 0)(0, 0)
    expected = T.Compose([T.Resize(24, BICUBIC), T.CenterCrop(24)])(Image.open(tmp_path / "long.png"))
    assert crop.shape == (3, 24, 24) and difference(crop, expected).mean() < 0.5
    assert label == 1


def test_crops_equal_pils_cut_out_and_resized(tmp_path):
    """Up to rounding: in the mean over crops less than 0.1 of 255."""
    sizes = [(500, 375), (224, 224), (100, 80), (150, 250)]
    for i, size in enumerate(sizes):
        smooth(*size, seed=i).save(tmp_path / f"{i}.png")
    files = [(tmp_path / f"{i}.png", i) for i in range(len(sizes))]
    crop_of = crops_of(files, imagenet_config(size=224, resize=256), seed=1)
    differences = []
    for epoch, (i, (path, _)) in itertools.product(range(6), enumerate(files)):
        box = imagenet.random_box(*sizes[i], 0.08, np.random.default_rng((1, epoch, i)))
        crop, label = crop_of(epoch, i)
        assert crop.dtype == torch.uint8 and crop.shape == (3, 224, 224) and label == i
        expected = Image.open(path).crop(box).resize((224, 224), Image.Resampling.BICUBIC)
        differences.append(difference(crop, expected))
    assert np.mean(differences) < 0.1 and np.max(differences) <= 8


# of these torchvision, which rounds the long side down and half an offset to even, rounds as we do
SIZES = [(500, 375), (375, 500), (300, 300), (256, 256), (512, 256), (600, 400), (100, 150), (224, 448), (640, 480)]


def test_photographs_are_evaluated_as_with_torchvision(tmp_path):
    for split, (i, size) in itertools.product(("train", "val"), enumerate(SIZES)):
        (tmp_path / split / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        smooth(*size, seed=i).save(tmp_path / split / "ab"[i % 2] / f"{i}.png")
    transform = T.Compose([T.Resize(256, BICUBIC), T.CenterCrop(224), T.ToTensor(), T.Normalize(MEAN, STD)])
    parts = zip(*imagenet_data(tmp_path, size=224, resize=256).in_order("test"), strict=True)
    images, labels = (torch.cat(part) for part in parts)
    assert labels.tolist() == [0] * 5 + [1] * 4
    files = sorted(tmp_path.glob("val/*/*"))
    for image, path in zip(images, files, strict=True):
        expected = transform(Image.open(path))
        error = (image - expected).abs() * torch.tensor(STD).view(3, 1, 1) * 255
        assert error.mean() < 0.1 and error.max() <= 2.01


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_of_photographs_can_be_entered_at_any_step_and_left_at_any(tree, workers):
    whole = list(imagenet_data(tree).train(5))
    loaded = imagenet_data(tree, workers)
    next(loaded.train(2))  # left, with its prefetched batches
    list(loaded.in_order("test"))
    torch.manual_seed(7), np.random.seed(7)
    for first in (0, 1, 2, 3):
        assert same(loaded.train(5, first_step=first), whole[first:])


def test_epochs_and_seeds_of_photographs_differ(tree):
    epochs = [torch.cat([x for x, _ in imagenet_data(tree, seed=s).train(e)]) for s, e in ((0, 0), (0, 1), (1, 0))]
    for one, other in itertools.combinations(epochs, 2):
        assert not torch.isclose(one, other).all(dim=(1, 2, 3)).any()
    files = [(tree / "train/a/0.JPEG", 0)]
    crop, other = crops_of(files, imagenet_config(), 0), crops_of(files, imagenet_config(), 1)
    assert torch.equal(crop(0, 0)[0], crop(0, 0)[0])
    assert not torch.equal(crop(0, 0)[0], crop(1, 0)[0]) and not torch.equal(crop(0, 0)[0], other(0, 0)[0])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_corrupt_photograph_is_named_in_one_line_and_leaves_no_worker_behind(tree, tmp_path, workers, split):
    root = tmp_path / "imagenet"
    shutil.copytree(tree, root)
    bad = root / split / "a/1.JPEG"
    bad.write_bytes(bad.read_bytes()[:300])
    before = set(multiprocessing.active_children())
    loaded = imagenet_data(root, workers)
    with pytest.raises(UserError, match=rf"^{bad}: not a readable image \([^\n]*\Z") as error:
        list(loaded.train(0) if split == "train" else loaded.in_order("test"))
    del loaded, error
    assert set(multiprocessing.active_children()) <= before


def test_a_process_ends_while_its_workers_wait(tree):
    script = (
        "import pathlib, tests.data_support as t\n"
        f"data = t.imagenet_data(pathlib.Path({str(tree)!r}), workers=1)\n"
        "next(data.train(0)); print('done')"
    )
    ended = ran("-c", script)
    assert (ended.stdout, ended.stderr) == ("done\n", "")


def test_what_is_missing_of_imagenet_is_named(tree, tmp_path):
    for part in ("train", "val"):
        assert refused(imagenet_data, tmp_path).startswith(f"no folder {tmp_path}/{part} that can be read ")
        (tmp_path / part).symlink_to(tree / part)
    line = "train: must hold dataset.num_classes=1000 class folders, got 2"
    assert line in refused(lambda: imagenet_data(tree, num_classes=1000))
    shutil.copytree(tree, tmp_path / "odd")
    (tmp_path / "odd/val/a").rename(tmp_path / "odd/val/c")
    assert "odd/val: must have the same class folders, only one has a c" in refused(imagenet_data, tmp_path / "odd")


def test_the_fingerprint_of_photographs_changes_with_their_names(tree, tmp_path):
    shutil.copytree(tree, tmp_path / "other")
    assert imagenet_data(tree).fingerprint == imagenet_data(tmp_path / "other").fingerprint
    (tmp_path / "other/val/a/0.JPEG").rename(tmp_path / "other/val/a/00.JPEG")
    assert imagenet_data(tree).fingerprint != imagenet_data(tmp_path / "other").fingerprint
