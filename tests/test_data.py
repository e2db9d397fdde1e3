"""Batches, trees, caches, CIFAR, digits and ImageNet against slow references written from the definitions."""

import errno
import hashlib
import itertools
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.transforms as T
import yaml
from PIL import Image

from normloss import config, data
from normloss.data import cifar, digits, folder, imagenet
from normloss.data.order import generator, steps_per_epoch
from normloss.data.tensors import Split, TensorData, draw
from normloss.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT.parent / "shared/data/imagenet-sample"
CPU = torch.device("cpu")


def bug(error, reason):
    """A known defect: the test passes once it is mended, and then this mark must go."""
    return pytest.mark.xfail(strict=True, raises=error, reason=reason)


def read_config(name, **keys):
    values = yaml.safe_load((ROOT / f"configs/dataset/{name}.yaml").read_text())
    return values | keys


def tensor_config(**keys):
    values = dict(num_classes=3, size=6, pad=2, padding="zero", mean=[10.4, 120.0, 200.6], std=[1.0, 2.0, 50.0])
    return config.Folder(**read_config("folder", label="mine") | values | keys)


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def tensor_data(cfg, images=11, batch_size=4, seed=0, test_images=3):
    C, S = cfg.channels, cfg.size
    train = Split(pixels(images, C, S, S), np.arange(images) % cfg.num_classes)
    test = Split(pixels(test_images, C, S, S, seed=1), np.arange(test_images) % cfg.num_classes)
    return TensorData(cfg, train, test, seed, batch_size, CPU)


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


# random streams ------------------------------------------------------------------------------------


def test_a_stream_depends_on_its_whole_key():
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 1, 2), (0, 2, 1), (2**40, 1)]
    assert len({generator(*key).initial_seed() for key in keys}) == len(keys)
    assert generator(3, 4).initial_seed() == generator(3, 4).initial_seed()


def test_the_order_of_an_epoch_and_its_first_step_have_different_streams():
    assert generator(3, 4).initial_seed() != generator(3, 4, 0).initial_seed()


@pytest.mark.parametrize("images, batch_size, steps", [
    (8, 4, 2), (9, 4, 2), (10, 4, 3), (11, 4, 3), (3, 4, 1), (1, 4, 1), (3, 1, 3), (50_000, 128, 391),
    (50_000, 64, 782), (1_281_167, 128, 10_010), (50_001, 100, 500),
])  # fmt: skip
def test_a_short_batch_is_kept_and_a_batch_of_one_left_out(images, batch_size, steps):
    assert steps_per_epoch(images, batch_size) == steps


# tensor batches ------------------------------------------------------------------------------------


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
        for k in range(len(x)):
            at = 4 * step + k
            i = draws.order[at].item()
            expected = slow_crop(source[i], draws.dy[at].item(), draws.dx[at].item(), draws.flip[at].item(), cfg)
            np.testing.assert_allclose(x[k].numpy(), expected, rtol=1e-6, atol=1e-5)
            assert y[k] == i % 3
    assert step == 2


def test_batches_are_channels_last():
    (x, _), *_ = tensor_data(tensor_config()).train(0)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_each_epoch_shows_each_image_once_in_a_new_order():
    epochs = [positions(tensor_config(), 10, epoch=epoch) for epoch in range(3)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert sorted(itertools.chain(*batches)) == list(range(10))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert positions(tensor_config(), 10, seed=1) != epochs[0]


def test_the_image_that_a_batch_of_one_would_hold_is_left_out():
    batches = positions(tensor_config(), 9)
    assert [len(batch) for batch in batches] == [4, 4] and len(set(itertools.chain(*batches))) == 8


def test_an_epoch_can_be_entered_at_any_step():
    whole = list(tensor_data(tensor_config()).train(3))
    for first in range(4):
        assert same(tensor_data(tensor_config()).train(3, first_step=first), whole[first:])


def test_batches_do_not_depend_on_what_ran_before():
    fresh, used = tensor_data(tensor_config()), tensor_data(tensor_config())
    expected = list(fresh.train(2))
    torch.manual_seed(123)
    list(used.train(0)), list(used.test())
    halfway = used.train(1)
    next(halfway)
    assert same(used.train(2), expected)
    assert not same(tensor_data(tensor_config(), seed=1).train(2), expected)


def test_batches_leave_the_global_random_state_alone():
    before = torch.get_rng_state()
    list(tensor_data(tensor_config()).train(0))
    assert torch.equal(torch.get_rng_state(), before)


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


def test_draws_of_different_epochs_are_unrelated():
    first, second = (torch.stack([c.double() for c in draw(0, epoch, 20_000, 4, 0.5)]) for epoch in (0, 1))
    assert all(
        abs(torch.corrcoef(torch.stack(pair))[0, 1]) < 5 / math.sqrt(20_000) for pair in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("images", [3, 16, 17, 1100])
def test_the_test_set_comes_whole_in_order_and_unchanged(images):
    cfg = tensor_config(flip=1.0)
    x, y = (torch.cat(part) for part in zip(*tensor_data(cfg, test_images=images).test(), strict=True))
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


# class-folder trees --------------------------------------------------------------------------------


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


def forbid_decoding(monkeypatch):
    def decode(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(folder, "decode", decode)


def test_a_tree_is_read_in_alphabetical_order(tmp_path):
    written = save_tree(tmp_path / "train", classes=("emu", "cat", "dog"))
    split = folder.read_tree(tmp_path / "train", tensor_config())
    assert split.images.dtype == np.uint8 and split.images.shape == (6, 3, 6, 6)
    assert split.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for image, (name, i) in zip(split.images, itertools.product(("cat", "dog", "emu"), range(2)), strict=True):
        np.testing.assert_array_equal(image, written[name, i].transpose(2, 0, 1))


def test_hidden_folders_and_other_files_are_no_classes_and_no_images(tmp_path):
    save_tree(tmp_path / "train")
    (tmp_path / "train/.hidden").mkdir()
    (tmp_path / "train/readme.txt").write_text("x")
    (tmp_path / "train/cat/notes.txt").write_text("x")
    assert len(folder.read_tree(tmp_path / "train", tensor_config()).labels) == 6


def test_hidden_folders_are_not_counted_as_classes(tmp_path):
    save_tree(tmp_path / "train")
    (tmp_path / "train/.ipynb_checkpoints").mkdir()
    assert config._count_classes(tmp_path) == 3


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "jpeg"])
def test_jpegs_are_read(tmp_path, suffix):
    for name in ("cat", "dog", "emu"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (6, 6), (200, 100, 50)).save(tmp_path / name / f"0.{suffix}")
    images = folder.read_tree(tmp_path, tensor_config()).images
    assert np.abs(images - np.array([200.0, 100, 50]).reshape(3, 1, 1)).max() <= 3  # JPEG's loss


def test_grey_files_serve_as_colour_and_colour_files_as_grey(tmp_path):
    grey, colour = save_image(tmp_path / "g.png", mode="L"), save_image(tmp_path / "c.png")
    np.testing.assert_array_equal(folder.decode(tmp_path / "g.png", 6, 3), np.stack([grey] * 3))
    luma = colour @ np.array([0.299, 0.587, 0.114])
    assert np.abs(folder.decode(tmp_path / "c.png", 6, 1)[0] - luma).max() <= 1


def test_16_bit_files_keep_their_range(tmp_path):
    Image.fromarray(np.array([[0, 20_000], [40_000, 65_535]], np.uint16)).save(tmp_path / "deep.png")
    expected = np.array([[0, 78, 156, 255]])  # 255 / 65535 of it
    assert np.abs(folder.decode(tmp_path / "deep.png", 2, 1).reshape(1, 4) - expected).max() <= 1


@pytest.mark.parametrize("size", [(6, 6), (12, 12), (30, 12), (9, 17), (3, 5), (1, 40)])
def test_other_sizes_are_resized_by_the_short_side_and_cropped_in_the_centre(tmp_path, size):
    ramp = np.add.outer(np.zeros(size[1]), np.linspace(0, 255, size[0])).round().astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    image = folder.decode(tmp_path / "ramp.png", 6, 3)
    assert image.shape == (3, 6, 6) and image.dtype == np.uint8
    rows = image[:, :, :].astype(float)
    assert (rows == rows[:, :1]).all()  # constant down the columns
    assert (rows + rows[:, :, ::-1])[:, 0].mean() == pytest.approx(255 if size[0] > 1 else 0, abs=40)  # centred


@pytest.mark.parametrize("counts, message", [(1, "must hold 2 images for folder, got 1"), (3, "got 3")])
def test_a_wrong_count_names_the_class_folder(tmp_path, counts, message):
    save_tree(tmp_path)
    save_image(tmp_path / "dog/2.png")
    if counts == 1:
        for i in (1, 2):
            (tmp_path / f"dog/{i}.png").unlink()
    with pytest.raises(UserError, match=message) as error:
        folder.read_tree(tmp_path, tensor_config(), per_class=2)
    assert str(error.value).startswith(f"{tmp_path}/dog: ")


def test_the_right_count_passes(tmp_path):
    save_tree(tmp_path)
    assert len(folder.read_tree(tmp_path, tensor_config(), per_class=2).labels) == 6


def test_a_wrong_number_of_classes_is_refused(tmp_path):
    save_tree(tmp_path, classes=("cat", "dog"))
    with pytest.raises(UserError, match="dataset.num_classes=3 class folders, got 2") as error:
        folder.read_tree(tmp_path, tensor_config())
    assert str(tmp_path) in str(error.value)


def test_a_class_folder_without_images_is_refused(tmp_path):
    save_tree(tmp_path)
    (tmp_path / "fox").mkdir()
    with pytest.raises(UserError, match="fox: no images"):
        folder.read_tree(tmp_path, tensor_config(num_classes=4))


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"no folder {tmp_path}/train: data_dir must hold"):
        folder.load(tensor_config(), tmp_path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", None])
def test_a_corrupt_file_is_named_in_one_line(tmp_path, content):
    save_tree(tmp_path / "train")
    bad = tmp_path / "train/dog/1.png"
    bad.write_bytes(bad.read_bytes()[:-40] if content is None else content)
    with pytest.raises(UserError, match="not a readable image") as error:
        folder.read_tree(tmp_path / "train", tensor_config())
    assert str(error.value).startswith(f"{bad}: ") and "\n" not in str(error.value)
    assert not list(tmp_path.glob(".normloss/*"))


def test_a_file_that_claims_to_be_huge_is_named_too(tmp_path):
    save_image(tmp_path / "bad.bmp")
    content = bytearray((tmp_path / "bad.bmp").read_bytes())
    content[18:26] = (2**15).to_bytes(4, "little") * 2  # width, height
    (tmp_path / "bad.bmp").write_bytes(content)
    with pytest.raises(UserError, match="bad.bmp"):
        folder.decode(tmp_path / "bad.bmp", 6, 3)


def test_val_serves_where_there_is_no_test(tmp_path):
    save_tree(tmp_path / "train"), save_tree(tmp_path / "val", images=1)
    assert [len(split.labels) for split in folder.load(tensor_config(), tmp_path)] == [6, 3]
    save_tree(tmp_path / "test", images=3)
    assert [len(split.labels) for split in folder.load(tensor_config(), tmp_path)] == [6, 9]


def test_train_and_test_must_have_the_same_classes(tmp_path):
    save_tree(tmp_path / "train"), save_tree(tmp_path / "test", classes=("ant", "cat", "dog"))
    with pytest.raises(UserError):
        folder.load(tensor_config(), tmp_path)


# the cache -----------------------------------------------------------------------------------------


def test_a_second_read_decodes_nothing(tmp_path, monkeypatch, capsys):
    save_tree(tmp_path / "train")
    first = folder.read_tree(tmp_path / "train", tensor_config())
    assert capsys.readouterr().out == f"decoding 6 images of {tmp_path}/train (once)\n"
    forbid_decoding(monkeypatch)
    second = folder.read_tree(tmp_path / "train", tensor_config())
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert capsys.readouterr().out == ""


def touch(root):
    later = root.stat().st_mtime_ns + 10**9
    os.utime(root / "dog/1.png", ns=(later, later))


def replace(root):
    stat = (root / "dog/1.png").stat()
    save_image(root / "dog/1.png", seed=99)
    os.utime(root / "dog/1.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def add(root):
    save_image(root / "dog/7.png", seed=99)


def remove(root):
    (root / "dog/0.png").unlink()


def rename(root):
    (root / "dog/0.png").rename(root / "cat/9.png")


@pytest.mark.parametrize("change", [touch, replace, add, remove, rename])
def test_a_changed_source_is_noticed(tmp_path, monkeypatch, capsys, change):
    root = tmp_path / "train"
    save_tree(root)
    folder.read_tree(root, tensor_config())
    change(root)
    capsys.readouterr()
    split = folder.read_tree(root, tensor_config())
    assert "decoding" in capsys.readouterr().out
    expected = [np.asarray(Image.open(path)).transpose(2, 0, 1) for path in sorted(root.glob("*/*.png"))]
    np.testing.assert_array_equal(split.images, expected)
    assert len(list((tmp_path / ".normloss").iterdir())) == 1  # the old cache is gone
    forbid_decoding(monkeypatch)
    folder.read_tree(root, tensor_config())


@pytest.mark.parametrize("keys", [dict(size=4), dict(channels=1, mean=[1.0], std=[1.0])])
def test_another_size_or_channels_is_another_cache(tmp_path, keys):
    save_tree(tmp_path / "train")
    folder.read_tree(tmp_path / "train", tensor_config())
    cfg = tensor_config(**keys)
    assert folder.read_tree(tmp_path / "train", cfg).images.shape == (6, cfg.channels, cfg.size, cfg.size)


def test_train_and_test_have_caches_of_their_own(tmp_path, monkeypatch):
    save_tree(tmp_path / "train"), save_tree(tmp_path / "test", images=1)
    before = folder.load(tensor_config(), tmp_path)
    forbid_decoding(monkeypatch)
    after = folder.load(tensor_config(), tmp_path)
    assert all(np.array_equal(a.images, b.images) for a, b in zip(before, after, strict=True))


def flip_a_pixel(content):
    content[len(content) // 2] ^= 1


def cut_short(content):
    del content[len(content) // 2 :]


def empty(content):
    content.clear()


def overwrite(content):
    content[:] = b"not an archive"


def flip_the_compression_method(content):
    content[content.index(b"PK\x01\x02") + 10] ^= 64


def flip_the_encryption_flag(content):
    content[content.index(b"PK\x01\x02") + 8] ^= 1


@pytest.mark.parametrize("damage", [
    flip_a_pixel, cut_short, empty, overwrite, flip_the_compression_method,
    pytest.param(flip_the_encryption_flag, marks=bug(RuntimeError, "zipfile asks for a password with a RuntimeError")),
])  # fmt: skip
def test_a_damaged_cache_is_decoded_anew_with_a_line(tmp_path, monkeypatch, capsys, damage):
    save_tree(tmp_path / "train")
    first = folder.read_tree(tmp_path / "train", tensor_config())
    (cache,) = (tmp_path / ".normloss").iterdir()
    content = bytearray(cache.read_bytes())
    damage(content)
    cache.write_bytes(content)
    capsys.readouterr()
    second = folder.read_tree(tmp_path / "train", tensor_config())
    first_line, second_line = capsys.readouterr().out.splitlines()
    assert first_line.startswith(f"{cache}: damaged") and second_line.startswith("decoding 6 images")
    np.testing.assert_array_equal(first.images, second.images)
    forbid_decoding(monkeypatch)
    folder.read_tree(tmp_path / "train", tensor_config())


def refuse(*_, **__):
    raise OSError(errno.EROFS, "Read-only file system")


def test_a_read_only_folder_gives_a_line_and_goes_on(tmp_path, monkeypatch, capsys):
    save_tree(tmp_path / "train")
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert len(folder.read_tree(tmp_path / "train", tensor_config()).labels) == 6
    assert "no cache kept (Read-only file system); the next run decodes again" in capsys.readouterr().out


def test_a_read_only_mount_with_an_old_cache_goes_on_too(tmp_path, monkeypatch, capsys):
    save_tree(tmp_path / "train")
    (tmp_path / ".normloss").mkdir()
    monkeypatch.setattr(folder, "open", refuse, raising=False)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert len(folder.read_tree(tmp_path / "train", tensor_config()).labels) == 6
    assert "no cache kept" in capsys.readouterr().out


def test_a_full_disk_leaves_no_half_cache(tmp_path, monkeypatch, capsys):
    def savez(file, **_):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    save_tree(tmp_path / "train")
    monkeypatch.setattr(np, "savez", savez)
    folder.read_tree(tmp_path / "train", tensor_config())
    assert "no cache kept (No space left on device)" in capsys.readouterr().out
    assert not list((tmp_path / ".normloss").iterdir())


# CIFAR ---------------------------------------------------------------------------------------------


def cifar_config(name="cifar10", **keys):
    section = {"cifar10": config.Cifar10, "cifar100": config.Cifar100}[name]
    return section(**read_config(name, padding="zero", **keys))


class FakeArchive:
    """Like torchvision's: images (N, 32, 32, 3), labels a list."""

    def __init__(self, root, train, download):
        self.data = pixels(5 if train else 2, 32, 32, 3, seed=int(train))
        self.targets = [3, 1, 4, 1, 5] if train else [9, 2]


def offline(*_, **__):
    raise URLError("[Errno -2] Name or service not known")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_an_archive_is_turned_to_channels_first(tmp_path, monkeypatch, name):
    monkeypatch.setitem(cifar.ARCHIVES, name, FakeArchive)
    train, test = cifar.load(cifar_config(name), tmp_path)
    assert train.images.shape == (5, 3, 32, 32) and test.images.shape == (2, 3, 32, 32)
    expected = pixels(5, 32, 32, 3, seed=1)
    for n, c in itertools.product(range(5), range(3)):
        np.testing.assert_array_equal(train.images[n, c], expected[n, :, :, c])
    assert train.labels.tolist() == [3, 1, 4, 1, 5] and test.labels.tolist() == [9, 2]
    assert train.labels.dtype == np.int64
    batches = list(TensorData(cifar_config(name), train, test, 0, 2, CPU).train(0))
    assert [x.shape for x, _ in batches] == [(2, 3, 32, 32), (2, 3, 32, 32)]


@pytest.mark.parametrize("name, md5", [
    ("cifar10", "c58f30108f718f92721af3b95e74349a"), ("cifar100", "eb9058c3a382ffc7106e4002c42a8d85"),
])  # fmt: skip
def test_the_archives_are_those_of_krizhevsky(name, md5):
    assert cifar.ARCHIVES[name].tgz_md5 == md5
    assert cifar.ARCHIVES[name].filename == cifar.archive_name(name)


def missing_parts(name, data_dir):
    return [
        f"no {name}: looked for {data_dir / name}/train, {data_dir}/train and torchvision's files in {data_dir}",
        "the download failed",
        "tree {train,test}/<class>/*.png",
        {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}[name],
        "data_dir=DIR",
        "dataset=digits",
    ]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("reason", [
    URLError("[Errno -2] Name or service not known"), RuntimeError("File not found or corrupted."), TimeoutError(),
])  # fmt: skip
def test_no_network_and_no_data_is_one_line_with_the_ways_out(tmp_path, monkeypatch, name, reason):
    def archive(*_, **__):
        raise reason

    monkeypatch.setitem(cifar.ARCHIVES, name, archive)
    with pytest.raises(UserError) as error:
        cifar.load(cifar_config(name), tmp_path)
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in missing_parts(name, tmp_path))
    assert f"({str(reason) or 'TimeoutError'})" in message


def test_a_corrupt_archive_is_not_trained_on(tmp_path, monkeypatch):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"<html>not found</html>")
    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(UserError, match="no cifar10: .*Name or service not known.*dataset=digits"):
        cifar.load(cifar_config(), tmp_path)


@pytest.mark.parametrize("below", ["cifar10", "."])
def test_a_tree_goes_before_the_archive(tmp_path, monkeypatch, below):
    monkeypatch.setitem(cifar.ARCHIVES, "cifar10", offline)
    asked = []

    def read_tree(root, cfg, per_class):
        asked.append((root, per_class))
        return root.name

    monkeypatch.setattr(cifar, "read_tree", read_tree)
    root = tmp_path / below
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
    assert cifar.load(cifar_config(), tmp_path) == ("train", "test")
    assert asked == [(root / "train", 5000), (root / "test", 1000)]


def test_the_tree_named_after_the_data_set_goes_first(tmp_path, monkeypatch):
    for below, split in itertools.product(("cifar100", "."), ("train", "test")):
        (tmp_path / below / split).mkdir(parents=True)
    asked = []
    monkeypatch.setattr(cifar, "read_tree", lambda root, cfg, per_class: asked.append((root, per_class)))
    cifar.load(cifar_config("cifar100"), tmp_path)
    assert asked == [(tmp_path / "cifar100/train", 500), (tmp_path / "cifar100/test", 100)]


def test_a_tree_of_the_wrong_size_is_refused(tmp_path):
    for split in ("train", "test"):
        save_tree(tmp_path / "cifar10" / split, classes=[f"class{k}" for k in range(10)], images=1, size=(32, 32))
    with pytest.raises(UserError, match="class0: must hold 5000 images for cifar10, got 1"):
        cifar.load(cifar_config(), tmp_path)


# digits --------------------------------------------------------------------------------------------


def slow_enlarge(small):
    """8x8 -> 16x16: each new pixel lies a quarter of the way to a neighbour; the border repeats."""
    padded = np.pad(small, 1, mode="edge")
    rows = np.empty((16, 10))
    rows[0::2] = 0.75 * padded[1:-1] + 0.25 * padded[:-2]
    rows[1::2] = 0.75 * padded[1:-1] + 0.25 * padded[2:]
    out = np.empty((16, 16))
    out[:, 0::2] = 0.75 * rows[:, 1:-1] + 0.25 * rows[:, :-2]
    out[:, 1::2] = 0.75 * rows[:, 1:-1] + 0.25 * rows[:, 2:]
    return out


@pytest.fixture(scope="module")
def digit_splits():
    return digits.load(config.Digits(**read_config("digits")), Path("nowhere"))


def test_digits_are_1437_and_360_in_the_range_of_bytes(digit_splits):
    train, test = digit_splits
    assert train.images.shape == (1437, 1, 16, 16) and test.images.shape == (360, 1, 16, 16)
    for images, labels in digit_splits:
        assert images.dtype == np.uint8 and labels.dtype == np.int64
        assert images.min() == 0 and images.max() > 250
        assert len(images) == len(labels)


def test_digits_are_stratified(digit_splits):
    train, test = (np.bincount(split.labels, minlength=10) for split in digit_splits)
    assert (np.abs(test - (train + test) * 360 / 1797) < 1).all()


def test_digits_are_all_of_scikit_learns_each_in_one_of_the_splits(digit_splits):
    from sklearn.datasets import load_digits

    source = load_digits()
    expected = Counter(
        (label, np.rint(slow_enlarge(image * 255 / 16)).astype(np.uint8).tobytes())
        for image, label in zip(source.images, source.target.tolist(), strict=True)
    )
    images, labels = (np.concatenate(part) for part in zip(*digit_splits, strict=True))
    found = Counter(zip(labels.tolist(), (image.tobytes() for image in images), strict=True))
    assert found == expected


def test_the_split_of_digits_is_fixed(digit_splits):
    digests = [hashlib.sha256(s.images.tobytes() + s.labels.astype(np.uint8).tobytes()) for s in digit_splits]
    assert [digest.hexdigest()[:16] for digest in digests] == ["37998f0945711eef", "913df9e82e1266af"]


def test_the_constants_of_digits_are_those_of_its_training_images(digit_splits):
    values = read_config("digits")
    assert digit_splits[0].images.mean() == pytest.approx(values["mean"][0], abs=0.1)
    assert digit_splits[0].images.std() == pytest.approx(values["std"][0], abs=0.1)


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


@bug(RuntimeError, "workers end three seconds after SIGTERM, though the parent needs them for a longer step")
def test_a_signal_to_the_workers_is_left_to_the_parent(tree):
    loaded = imagenet_data(tree, workers=2)
    batches = loaded.train(0)
    first = next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) >= 2
    for worker, number in itertools.product(workers, (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)):
        os.kill(worker.pid, number)
    time.sleep(4)  # a step of the parent's that takes its time
    assert same([first, *batches], imagenet_data(tree).train(0))


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
    """The factor of each operation and the order of the three for each image, from the generator."""
    factors = 1 + strength * (2 * torch.rand(images, 3, generator=g) - 1)
    return factors.double().numpy(), torch.rand(images, 3, generator=g).argsort(1).numpy()


def slow_jitter(x, strength, g):
    factors, orders = replay_jitter(len(x), strength, g)
    out = []
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
    factors, _ = replay_jitter(10, 0.4, generator(1))
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
    script = "import test_data as t; data = t.imagenet_data(t.Path(%r), workers=1); next(data.train(0)); print('done')"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", script % str(tree)]
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
