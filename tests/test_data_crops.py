"""ImageNet's random boxes, crops and centre crops."""

import itertools
import math

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from PIL import Image

from normloss.data import imagenet
from tests.data_support import imagenet_config, rounding_agrees, save_image, smooth

BICUBIC = T.InterpolationMode.BICUBIC


def chw(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


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
    crop, label = imagenet.Crops([(tmp_path / "long.png", 1)], imagenet_config(), 0)[0, 0]
    expected = T.Compose([T.Resize(24, BICUBIC), T.CenterCrop(24)])(Image.open(tmp_path / "long.png"))
    assert crop.shape == (3, 24, 24) and difference(crop, expected).mean() < 0.5
    assert label == 1


SIZES = [(500, 375), (375, 500), (300, 300), (256, 256), (512, 256), (600, 400), (100, 150), (224, 448), (640, 480)]


@pytest.mark.parametrize("size", SIZES)
def test_the_centre_crop_equals_torchvisions(size):
    assert rounding_agrees(*size)
    image = smooth(*size)
    found = imagenet.resize_and_centre(chw(image), 256, 224)
    expected = T.Compose([T.Resize(256, BICUBIC), T.CenterCrop(224)])(image)
    assert difference(found, expected).mean() < 0.1 and difference(found, expected).max() <= 2


def test_crops_equal_pils_cut_out_and_resized(tmp_path):
    """Up to rounding: in the mean over crops less than 0.1 of 255."""
    sizes = [(500, 375), (224, 224), (100, 80), (150, 250)]
    for i, size in enumerate(sizes):
        smooth(*size, seed=i).save(tmp_path / f"{i}.png")
    files = [(tmp_path / f"{i}.png", i) for i in range(len(sizes))]
    crops = imagenet.Crops(files, imagenet_config(size=224, resize=256), seed=1)
    differences = []
    for epoch, (i, (path, _)) in itertools.product(range(6), enumerate(files)):
        box = imagenet.random_box(*sizes[i], 0.08, np.random.default_rng((1, epoch, i)))
        crop, label = crops[epoch, i]
        assert crop.dtype == torch.uint8 and crop.shape == (3, 224, 224) and label == i
        expected = Image.open(path).crop(box).resize((224, 224), Image.Resampling.BICUBIC)
        differences.append(difference(crop, expected))
    assert np.mean(differences) < 0.1 and np.max(differences) <= 8
