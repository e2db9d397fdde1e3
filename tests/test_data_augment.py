"""Colour jitter, lighting and flip, batched, against an operation and an image at a time."""

import math

import numpy as np
import pytest
import torch

from normloss.data import augment, imagenet
from normloss.data.order import generator
from tests.data_support import imagenet_config, imagenet_data, save_photographs


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return save_photographs(tmp_path_factory.mktemp("imagenet"))


def brightness(x, a):
    return a * x


def contrast(x, a):
    grey = 0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]
    return a * x + (1 - a) * grey.mean()


def saturation(x, a):
    grey = 0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]
    return a * x + (1 - a) * grey


def slow_jitter(x, strength, g):
    factors = 1 + strength * (2 * torch.rand(3, len(x), generator=g).double().numpy().T - 1)
    out = []
    orders = np.random.default_rng(0).permuted(np.tile(range(3), (len(x), 1)), axis=1)  # fb's random order
    for image, a, order in zip(x.double().numpy(), factors, orders, strict=True):
        for operation in order:
            image = (brightness, contrast, saturation)[operation](image, a[operation])
        out.append(image)
    return np.stack(out)


def test_colour_jitter_equals_an_operation_and_an_image_at_a_time():
    x = torch.rand(40, 3, 5, 5, generator=generator(0))
    jittered = augment.color_jitter(x, 0.4, generator(1)).numpy()
    np.testing.assert_allclose(jittered, slow_jitter(x, 0.4, generator(1)), rtol=0, atol=1e-6)
    assert jittered.max() > 1  # nothing is clamped, as in fb.resnet.torch


VALUES = [0.2175, 0.0188, 0.0045]  # fb.resnet.torch datasets/imagenet.lua
VECTORS = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]  # [colour][component]


def slow_lighting(images, sigma, g):
    alpha = (sigma * torch.randn(images, 3, generator=g)).tolist()
    return np.array([
        [sum(a[k] * VALUES[k] * VECTORS[colour][k] for k in range(3)) for colour in range(3)] for a in alpha
    ]).reshape(images, 3, 1, 1)  # fmt: skip


def test_lighting_is_the_sum_over_principal_components():
    x = torch.rand(20, 3, 5, 5, generator=generator(0))
    lit = augment.lighting(x, 0.1, generator(1)).numpy()
    np.testing.assert_allclose(lit, x.numpy() + slow_lighting(20, 0.1, generator(1)), rtol=0, atol=1e-6)
    assert torch.equal(augment.lighting(x, 0.0, generator(1)), x)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_flips_mirror_whole_images_at_their_rate(probability):
    x = torch.rand(400, 3, 2, 3, generator=generator(0))
    found = augment.random_flip(x, probability, generator(1)).numpy()
    flipped = [np.array_equal(image, source[:, :, ::-1]) for image, source in zip(found, x.numpy(), strict=True)]
    kept = [np.array_equal(image, source) for image, source in zip(found, x.numpy(), strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert abs(np.mean(flipped) - probability) <= 5 * math.sqrt(probability * (1 - probability) / 400)


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
