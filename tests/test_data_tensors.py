"""Batches from a device tensor: random streams, crop, flip, normalisation, digits."""

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from normloss import config
from normloss.config.schema import steps_per_epoch
from normloss.data import digits
from normloss.data.tensors import Split, TensorData, draw, fingerprint
from tests.data_support import CPU, pixels, positions, read_config, same, tensor_config, tensor_data


@pytest.mark.parametrize("images, batch_size, steps", [
    (8, 4, 2), (9, 4, 2), (10, 4, 3), (11, 4, 3), (3, 4, 1), (1, 4, 1), (3, 1, 3), (50_000, 128, 391),
    (50_000, 64, 782), (1_281_167, 128, 10_010), (50_001, 100, 500),
])  # fmt: skip
def test_a_short_batch_is_kept_and_a_batch_of_one_left_out(images, batch_size, steps):
    assert steps_per_epoch(images, batch_size) == steps


def slow_pixel(image, y, x, padding, mean):
    """The pixel (C,) of an image (C, S, S) at a place that may lie outside it."""
    S = image.shape[-1]
    if padding == "reflect":
        y, x = (-at if at < 0 else 2 * (S - 1) - at if at >= S else at for at in (y, x))
    inside = 0 <= y < S and 0 <= x < S
    return image[:, y, x] if inside else np.round(mean) if padding == "mean" else np.zeros(len(image))


def slow_crop(image, dy, dx, flip, cfg):
    """Pad, crop at (dy, dx), mirror, normalise: a pixel at a time."""
    S = cfg.size
    out = np.empty(image.shape)
    for i, j in itertools.product(range(S), range(S)):
        column = S - 1 - j if flip else j
        pixel = slow_pixel(image, i + dy - cfg.pad, column + dx - cfg.pad, cfg.padding, cfg.mean)
        out[:, i, j] = (pixel - np.array(cfg.mean)) / np.array(cfg.std)
    return out


@pytest.mark.parametrize("padding", ["zero", "reflect", "mean"])
@pytest.mark.parametrize("pad, channels", [(2, 3), (2, 1), (0, 3)])
def test_batches_equal_a_slow_reference(padding, pad, channels):
    constants = dict(mean=[10.4, 120.0, 200.6][:channels], std=[1.0, 2.0, 50.0][:channels])
    cfg = tensor_config(padding=padding, pad=pad, channels=channels, **constants)
    source = pixels(11, channels, 6, 6)
    draws = draw(0, 5, 11, pad, cfg.flip)
    for step, (x, y) in enumerate(tensor_data(cfg).train(5)):
        assert x.dtype == torch.float32 and y.dtype == torch.int64
        assert x.is_contiguous(memory_format=torch.channels_last)
        for k in range(len(x)):
            at = 4 * step + k
            i = draws.order[at].item()
            expected = slow_crop(source[i], draws.dy[at].item(), draws.dx[at].item(), draws.flip[at].item(), cfg)
            np.testing.assert_allclose(x[k].numpy(), expected, rtol=1e-6, atol=1e-5)
            assert y[k] == i % 3
    assert step == 2


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_subtracts_and_divides_in_single_precision_bit_for_bit(channels):
    constants = dict(mean=[10.4, 120.0, 200.6][:channels], std=[1.1, 62.1, 50.7][:channels])
    every_byte = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16), (2, channels, 16, 16))
    data = tensor_data(tensor_config(channels=channels, **constants))
    mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in constants.values())
    found = data.normalise(torch.from_numpy(every_byte.copy()))
    np.testing.assert_array_equal(found.numpy(), (every_byte.astype(np.float32) - mean) / std)
    assert found.stride() == (256 * channels, 1, 16 * channels, channels)


def test_each_epoch_shows_each_image_once_in_a_new_order():
    epochs = [positions(tensor_config(), 10, epoch=epoch) for epoch in range(3)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert sorted(itertools.chain(*batches)) == list(range(10))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert positions(tensor_config(), 10, seed=1) != epochs[0]


def test_an_epoch_can_be_entered_at_any_step_after_anything():
    whole, used = list(tensor_data(tensor_config()).train(3)), tensor_data(tensor_config())
    next(used.train(1))
    for first in range(4):
        torch.manual_seed(first)
        assert same(used.train(3, first_step=first), whole[first:])


@pytest.mark.parametrize("flip", [0.0, 0.2, 0.5, 1.0])
def test_flips_come_at_the_configured_rate(flip):
    flips = draw(0, 0, 20_000, 4, flip).flip.double()
    assert abs(flips.mean().item() - flip) <= 5 * math.sqrt(flip * (1 - flip) / 20_000)


def test_crop_offsets_are_uniform_and_independent():
    draws = draw(0, 0, 81 * 400, 4, 0.5)
    cells = Counter(zip(draws.dy.tolist(), draws.dx.tolist(), strict=True))
    assert set(cells) == set(itertools.product(range(9), range(9)))
    assert all(abs(count - 400) < 5 * 20 for count in cells.values())  # Poisson: sigma = 20
    correlations = torch.corrcoef(torch.stack([choice.double() for choice in draws])).fill_diagonal_(0)
    assert correlations.abs().max() < 5 / math.sqrt(81 * 400)


@pytest.mark.parametrize("images", [3, 16, 17, 1100])
def test_the_test_set_comes_whole_in_order_and_unchanged(images):
    cfg = tensor_config(flip=1.0)
    x, y = (torch.cat(part) for part in zip(*tensor_data(cfg, test_images=images).in_order("test"), strict=True))
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (cfg.mean, cfg.std))
    np.testing.assert_allclose(x.numpy(), (pixels(images, 3, 6, 6, seed=1) - mean) / std, rtol=1e-6, atol=1e-5)
    assert y.tolist() == [i % 3 for i in range(images)]


def test_the_fingerprint_changes_with_any_pixel_or_label():
    def fingerprint(change=None):
        train, test = (Split(pixels(4, 3, 6, 6, seed=s), np.array([0, 1, 2, 0])) for s in (0, 1))
        if change:
            getattr(test, change).flat[0] ^= 1
        return TensorData(tensor_config(), train, test, 0, 2, CPU).fingerprint

    assert fingerprint() == fingerprint()
    assert len({fingerprint(), fingerprint("images"), fingerprint("labels")}) == 3


# fingerprints of what was made of scikit-learn 1.9.1's copy and its train_test_split, in this order
@pytest.mark.parametrize("size, digest", [(8, "3616d13d9b8a0a7a"), (16, "c9a5f839d26c0fe6"), (32, "c3266c7740f2b357")])
def test_pixels_labels_and_order_of_digits_never_change(size, digest):
    assert fingerprint(*digits.load(config.Digits(**read_config("digits", size=size)), Path("nowhere"))) == digest


def test_the_constants_of_digits_are_those_of_its_training_images():
    values = read_config("digits")
    train, _ = digits.load(config.Digits(**values), Path("nowhere"))
    assert train.images.mean() == pytest.approx(values["mean"][0], abs=0.1)
    assert train.images.std() == pytest.approx(values["std"][0], abs=0.1)
