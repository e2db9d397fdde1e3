"""Class-folder trees and their cache."""

import errno
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normloss.data import folder
from normloss.errors import UserError
from tests.data_support import save_image, save_tree, tensor_config

# class-folder trees --------------------------------------------------------------------------------


def test_a_tree_is_read_in_alphabetical_order(tmp_path):
    written = save_tree(tmp_path / "train", classes=("emu", "cat", "dog"))
    (tmp_path / "train/.hidden").mkdir()
    (tmp_path / "train/readme.txt").write_text("no class")
    split = folder.read_tree(tmp_path / "train", tensor_config())
    assert split.images.dtype == np.uint8 and split.images.shape == (6, 3, 6, 6)
    assert split.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for image, (name, i) in zip(split.images, itertools.product(("cat", "dog", "emu"), range(2)), strict=True):
        np.testing.assert_array_equal(image, written[name, i].transpose(2, 0, 1))


def test_grey_files_serve_as_colour_and_colour_files_as_grey(tmp_path):
    grey, colour = save_image(tmp_path / "g.png", mode="L"), save_image(tmp_path / "c.png")
    np.testing.assert_array_equal(folder.decode(tmp_path / "g.png", 6, 3)[0], np.stack([grey] * 3))
    luma = colour @ np.array([0.299, 0.587, 0.114])
    assert np.abs(folder.decode(tmp_path / "c.png", 6, 1)[0][0] - luma).max() <= 1


@pytest.mark.parametrize("size", [(6, 6), (12, 12), (30, 12), (9, 17), (3, 5), (1, 40)])
def test_other_sizes_are_resized_by_the_short_side_and_cropped_in_the_centre(tmp_path, size):
    ramp = np.add.outer(np.zeros(size[1]), np.linspace(0, 255, size[0])).round().astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    image = folder.decode(tmp_path / "ramp.png", 6, 3)[0]
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


def test_a_wrong_number_of_classes_is_refused(tmp_path):
    save_tree(tmp_path, classes=("cat", "dog"))
    with pytest.raises(UserError, match="dataset.num_classes=3 class folders, got 2") as error:
        folder.read_tree(tmp_path, tensor_config())
    assert str(tmp_path) in str(error.value)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"no folder {tmp_path}/train that can be read .No such file.*: data_dir must"):
        folder.load(tensor_config(), tmp_path)


def test_val_serves_where_there_is_no_test(tmp_path):
    save_tree(tmp_path / "train"), save_tree(tmp_path / "val", images=1)
    assert [len(split.labels) for split in folder.load(tensor_config(), tmp_path)] == [6, 3]
    save_tree(tmp_path / "test", images=3)
    assert [len(split.labels) for split in folder.load(tensor_config(), tmp_path)] == [6, 9]


# the cache -----------------------------------------------------------------------------------------


def test_a_second_read_decodes_nothing(tmp_path, capsys):
    save_tree(tmp_path / "train")
    first = folder.read_tree(tmp_path / "train", tensor_config())
    assert capsys.readouterr().out == f"decoding 6 images of {tmp_path}/train (once)\n"
    second = folder.read_tree(tmp_path / "train", tensor_config())
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert capsys.readouterr().out == ""


CHANGES = {
    "later": lambda image: os.utime(image, ns=(0, image.stat().st_mtime_ns + 10**9)),
    "replaced": lambda image: save_image(image, seed=99),
    "added": lambda image: save_image(image.with_name("7.png"), seed=99),
    "removed": lambda image: image.unlink(),
    "renamed": lambda image: image.rename(image.parents[1] / "cat/9.png"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_source_is_noticed(tmp_path, capsys, change):
    root = tmp_path / "train"
    save_tree(root)
    folder.read_tree(root, tensor_config())
    change(root / "dog/1.png")
    capsys.readouterr()
    split = folder.read_tree(root, tensor_config())
    assert "decoding" in capsys.readouterr().out
    expected = [np.asarray(Image.open(path)).transpose(2, 0, 1) for path in sorted(root.glob("*/*.png"))]
    np.testing.assert_array_equal(split.images, expected)
    assert len(list((tmp_path / ".normloss").iterdir())) == 1  # the old cache is gone


@pytest.mark.parametrize("harm", ["a flipped bit", "cut short"])
def test_a_damaged_cache_is_decoded_anew_with_a_line(tmp_path, capsys, harm):
    save_tree(tmp_path / "train")
    first = folder.read_tree(tmp_path / "train", tensor_config())
    (cache,) = (tmp_path / ".normloss").iterdir()
    content = bytearray(cache.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 1
    cache.write_bytes(content if harm == "a flipped bit" else content[:middle])
    capsys.readouterr()
    second = folder.read_tree(tmp_path / "train", tensor_config())
    first_line, second_line = capsys.readouterr().out.splitlines()
    assert first_line.startswith(f"{cache}: damaged") and second_line.startswith("decoding 6 images")
    np.testing.assert_array_equal(first.images, second.images)
    folder.read_tree(tmp_path / "train", tensor_config())
    assert capsys.readouterr().out == ""


def refuse(*_, **__):
    raise OSError(errno.EROFS, "Read-only file system")


def test_a_read_only_folder_gives_a_line_and_goes_on(tmp_path, monkeypatch, capsys):
    save_tree(tmp_path / "train")
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert len(folder.read_tree(tmp_path / "train", tensor_config()).labels) == 6
    assert "no cache kept (Read-only file system); the next run decodes again" in capsys.readouterr().out


def test_a_full_disk_leaves_no_half_cache(tmp_path, monkeypatch, capsys):
    def savez(file, **_):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    save_tree(tmp_path / "train")
    monkeypatch.setattr(np, "savez", savez)
    folder.read_tree(tmp_path / "train", tensor_config())
    assert "no cache kept (No space left on device)" in capsys.readouterr().out
    assert not list((tmp_path / ".normloss").iterdir())
