"""Packed data sets: the same pixels in the same order, in files of a chosen size, and refused unless whole."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from normloss import packs
from normloss.data import cifar, folder, packed
from normloss.data.tensors import Split, fingerprint
from normloss.errors import UserError


def split(n: int, channels: int = 3, size: int = 8, seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    return Split(rng.integers(0, 256, (n, channels, size, size), np.uint8), rng.integers(0, 4, n))


@pytest.fixture
def sets() -> tuple[Split, Split]:
    return split(2345), split(120, seed=1)


@pytest.fixture
def data_dir(tmp_path, sets) -> Path:
    """Noise does not shrink: 2,465 images of 192 bytes make five files of at most 100 kB and a sheet."""
    packed.write(*sets, "folder", 4, tmp_path / "packed", part_bytes=100_000)
    return tmp_path / "packed"


def test_the_same_pixels_labels_and_order_come_back(data_dir, sets):
    train, test = packed.read(packs.find(data_dir, "folder"))
    for mine, theirs in zip((train, test), sets, strict=True):
        np.testing.assert_array_equal(mine.images, theirs.images)
        np.testing.assert_array_equal(mine.labels, theirs.labels)
    assert fingerprint(train, test) == fingerprint(*sets)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_survive(tmp_path, channels):
    sets = split(41, channels), split(1, channels)
    packed.write(*sets, "folder", 4, tmp_path, part_bytes=10**6)
    train, _ = packed.read(packs.find(tmp_path, "folder"))
    np.testing.assert_array_equal(train.images, sets[0].images)


def test_files_keep_to_the_size_that_was_asked_for(data_dir):
    files = sorted(data_dir.iterdir())
    assert len(files) > 2
    largest = max(info.file_size for file in files for info in zipfile.ZipFile(file).infolist())
    assert all(file.stat().st_size < 100_000 + largest for file in files)


def test_packing_twice_gives_the_same_sheets(data_dir, sets, tmp_path):
    packed.write(*sets, "folder", 4, tmp_path / "again", part_bytes=100_000)
    for file in data_dir.iterdir():
        one, other = zipfile.ZipFile(file), zipfile.ZipFile(tmp_path / "again" / file.name)
        assert [(i.filename, i.CRC) for i in one.infolist()] == [(i.filename, i.CRC) for i in other.infolist()]


def test_the_loaders_take_a_pack_where_there_is_no_tree(data_dir, sets, config):
    cfg = config("dataset=folder", "model=resnet8", "recipe=mini", f"data_dir={data_dir}", "dataset.size=8")
    assert cfg.dataset.num_classes == 4
    train, test = folder.load(cfg.dataset, data_dir)
    assert fingerprint(train, test) == fingerprint(*sets)
    (data_dir / "train").mkdir()
    with pytest.raises(UserError, match="class folders|no folder"):
        folder.load(cfg.dataset, data_dir)


def test_cifar_goes_on_with_either_form(tmp_path, config):
    """A pack of CIFAR's name is read before anything is downloaded."""
    cfg = config("dataset=cifar10", "model=resnet8", "recipe=mini")
    sets = split(50, size=32), split(10, size=32)
    packed.write(*sets, "cifar10", 10, tmp_path, part_bytes=10**6)
    train, test = cifar.load(cfg.dataset, tmp_path)
    assert fingerprint(train, test) == fingerprint(*sets)


def test_a_missing_part_is_named_in_images(data_dir):
    (data_dir / "pack-folder-2.zip").unlink()
    with pytest.raises(UserError, match=r"hold 1,465 of 2,465 images: put the other files there"):
        packs.find(data_dir, "folder")


def test_parts_of_two_packs_are_refused(data_dir, tmp_path):
    packed.write(split(2345, seed=2), split(120), "folder", 4, tmp_path / "other", part_bytes=100_000)
    (tmp_path / "other" / "pack-folder-1.zip").replace(data_dir / "pack-folder-1.zip")
    with pytest.raises(UserError, match="parts of different packs"):
        packs.find(data_dir, "folder")


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_damaged_file_is_refused(data_dir, where):
    file = data_dir / "pack-folder-1.zip"
    content = bytearray(file.read_bytes())
    place = int(where * len(content))
    content[place : place + 64] = bytes(64)
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"pack-folder-1\.zip: (damaged|not a whole pack)"):
        packed.read(packs.find(data_dir, "folder"))


def test_a_cut_file_is_refused(data_dir):
    file = data_dir / "pack-folder-1.zip"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a whole pack"):
        packs.find(data_dir, "folder")


def test_the_script_packs_what_train_reads(tmp_path, load_script, capsys):
    script = load_script("pack_data")
    assert script.main(["dataset=digits", "model=resnet8", "--out", str(tmp_path)]) == 0
    assert "1,437 + 360 images" in capsys.readouterr().out
    train, _ = packed.read(packs.find(tmp_path, "digits"))
    assert train.images.shape == (1437, 1, 16, 16)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["dataset=imagenet"], "dataset: must be one of cifar10 cifar100 digits folder, got imagenet"),
        (["dataset=digits", "--part-mib=0"], "--part-mib: must be greater than 0, got 0"),
        (["dataset=mnist"], "dataset: must be one of"),
    ],
)
def test_the_script_refuses_in_one_line(tmp_path, load_script, capsys, words, line):
    assert load_script("pack_data").main([*words, "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"normloss: {line}")
    assert err.count("\n") == 1


def test_a_folder_keeps_its_label_in_a_pack(sets, tmp_path, config):
    words = ("dataset=folder", "dataset.size=16", "model=resnet8", "recipe=cifar10_resnet110")
    packed.write(*sets, "folder", 4, tmp_path / "packed", part_bytes=10**6, label="birds")
    assert config(*words, f"data_dir={tmp_path / 'packed'}").dataset.label == "birds"
    (tmp_path / "birds" / "train" / "owl").mkdir(parents=True)
    assert config(*words, f"data_dir={tmp_path / 'birds'}").dataset.label == "birds"
