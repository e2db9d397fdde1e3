"""Class-folder trees as people have them: kinds and sizes of files, remarks on what is seldom meant, the cache."""

import itertools
import json
import os

import numpy as np
import pytest
from PIL import Image

from normloss.analysis.study import read_conditions
from normloss.data import folder
from normloss.data.tensors import Split
from normloss.runs import store
from normloss.training.run import report_done
from tests.conftest import refused
from tests.data_support import TREE, pixels, save_image, save_tree, tensor_config
from tests.runs_support import write_run


def test_a_tree_is_read_in_alphabetical_order(tmp_path):
    written = save_tree(tmp_path / "train", classes=("emu", "cat", "dog"))
    (tmp_path / "train/.hidden").mkdir()
    (tmp_path / "train/readme.txt").write_text("no class")
    split = folder.read_tree(tmp_path / "train", tensor_config())
    assert split.images.dtype == np.uint8 and split.images.shape == (6, 3, 6, 6)
    assert split.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for image, (name, i) in zip(split.images, itertools.product(("cat", "dog", "emu"), range(2)), strict=True):
        np.testing.assert_array_equal(image, written[name, i].transpose(2, 0, 1))


def test_val_serves_where_there_is_no_test(tmp_path):
    save_tree(tmp_path / "train"), save_tree(tmp_path / "val", images=1)
    assert [len(split.labels) for split in folder.load(tensor_config(), tmp_path)] == [6, 3]
    save_tree(tmp_path / "test", images=3)
    assert [len(split.labels) for split in folder.load(tensor_config(), tmp_path)] == [6, 9]


@pytest.mark.parametrize("name", ["1e3", "null", "0x1F", "true"])
def test_a_folder_named_like_a_number_is_found_by_a_condition(tmp_path, config, name):
    (tmp_path / name / "train/cat").mkdir(parents=True)
    (tmp_path / name / "train/dog").mkdir()
    assert config(*TREE, f"data_dir={tmp_path}/{name}").dataset.label == name
    for words in (f"dataset.label={name}", f"dataset.label='{name}'"):
        assert read_conditions([words]) == {"dataset.label": [name]}


def test_colour_files_serve_as_grey(tmp_path):
    luma = save_image(tmp_path / "c.png") @ np.array([0.299, 0.587, 0.114])
    assert np.abs(folder.read_square(tmp_path / "c.png", 6, 1)[0][0] - luma).max() <= 1


@pytest.mark.parametrize("size", [(6, 6), (12, 12), (30, 12), (9, 17), (3, 5), (1, 40)])
def test_other_sizes_are_resized_by_the_short_side_and_cropped_in_the_centre(tmp_path, size):
    ramp = np.add.outer(np.zeros(size[1]), np.linspace(0, 255, size[0])).round().astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    image = folder.read_square(tmp_path / "ramp.png", 6, 3)[0]
    assert image.shape == (3, 6, 6) and image.dtype == np.uint8
    rows = image.astype(float)
    assert (rows == rows[:, :1]).all()  # constant down the columns
    assert (rows + rows[:, :, ::-1])[:, 0].mean() == pytest.approx(255 if size[0] > 1 else 0, abs=40)  # centred


@pytest.mark.parametrize("mode", ["LA", "P", "L"])
def test_transparency_of_any_kind_is_white(tmp_path, mode):
    image, options = Image.new(mode, (6, 6), (9, 0) if mode == "LA" else 9), {}
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    if mode != "LA":
        options["transparency"] = 9  # a colour of the palette, or a grey
    image.save(tmp_path / "x.png", **options)
    found, transparent = folder.read_square(tmp_path / "x.png", 6, 3)
    assert transparent and (found == 255).all()


def test_photographs_stand_upright(tmp_path):
    upright = pixels(6, 6)
    tags = Image.Exif()
    tags[0x0112] = 6  # orientation: turn by 90 degrees to see it upright
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "x.png", exif=tags)
    np.testing.assert_array_equal(folder.read_square(tmp_path / "x.png", 6, 1)[0][0], upright)


def test_every_format_is_read_and_what_is_not_is_counted(tmp_path, capsys):
    suffixes = ["png", "PNG", "jpg", "jpeg", "bmp", "gif", "tif", "tiff", "webp", "ppm"]
    for name in ("cat", "dog", "emu"):
        for i, suffix in enumerate(suffixes):
            save_image(tmp_path / f"train/{name}/{i}.{suffix}", seed=i)
        save_image(tmp_path / f"train/{name}/x.pgm", mode="L")
    for name in ("a.heic", "b.txt", "c.txt", "README", ".hidden"):
        (tmp_path / "train/dog" / name).touch()
    for _ in range(2):
        assert len(folder.read_tree(tmp_path / "train", tensor_config()).labels) == 33
        line = f"{tmp_path}/train: 33 images; not read: 1 .heic, 2 .txt, 1 without a suffix\n"
        assert capsys.readouterr().out.count(line) == 1


def test_transparent_images_are_counted_cached_or_not(tmp_path, capsys):
    save_tree(tmp_path / "train", mode="RGBA")
    for _ in range(2):
        folder.read_tree(tmp_path / "train", tensor_config())
        line = f"{tmp_path}/train: 6 images are transparent in places, which are white to the network"
        assert capsys.readouterr().out.count(line) == 1


def test_pixels_that_use_little_of_their_range_are_said(tmp_path, capsys):
    """12-bit data in 16-bit files stay scaled as 16 bits: 0 to 15 of 255."""
    for part in ("train", "test"):
        for k, name in enumerate(("cat", "dog", "emu")):
            (tmp_path / part / name).mkdir(parents=True)
            deep = np.random.default_rng(k).integers(0, 4096, (6, 6)).astype(np.uint16)
            deep[0, 0], deep[0, 1] = 0, 4095
            Image.fromarray(deep).save(tmp_path / part / name / f"{part}.png")
    train, _ = folder.load(tensor_config(), tmp_path)
    assert (train.images.min(), train.images.max()) == (0, 15)
    assert f"{tmp_path}: all training images lie within 0 to 15 of 0 to 255; 16-bit" in capsys.readouterr().out


def test_pictures_of_two_classes_and_of_both_parts_are_counted(tmp_path, capsys):
    save_tree(tmp_path / "train", images=4), save_tree(tmp_path / "test", images=5)  # of which 4 are in train/
    save_image(tmp_path / "train/dog/again.png", seed=0)  # cat/0.png
    folder.load(tensor_config(), tmp_path)
    said = capsys.readouterr().out
    assert f"{tmp_path}: 2 of 13 training images are identical to an image of another class\n" in said
    assert f"{tmp_path}: 12 of 15 test images are training images too\n" in said
    ordinary = (Split(pixels(6, 3, 6, 6, seed=seed), np.arange(6) % 3) for seed in range(2))
    assert folder.remarks(*ordinary) == []


def test_classes_that_are_not_those_of_the_config_are_refused(tmp_path, config):
    line = refused(folder.load, tensor_config(), tmp_path)
    assert line.startswith(f"no folder {tmp_path}/train that can be read (No such file") and ": data_dir must" in line
    save_tree(tmp_path / "train", classes=("cat", "dog"))
    line = f"{tmp_path}/train: must hold dataset.num_classes=3 class folders, got 2"
    assert line in refused(folder.read_tree, tmp_path / "train", tensor_config())
    save_tree(tmp_path / "one/train", classes=("cat",)), save_tree(tmp_path / "one/test", classes=("cat",))
    assert "dataset.num_classes: must be at least 2, got 1" in refused(config, *TREE, f"data_dir={tmp_path}/one")


def test_a_finished_run_on_images_that_are_read_otherwise_now_is_refused_with_the_reason(tmp_path, config):
    for part in ("train", "test"):
        save_tree(tmp_path / "mine" / part, mode="RGBA")
    words = (*TREE, "train.epochs=4", "train.milestones=[]", f"data_dir={tmp_path}/mine", f"store={tmp_path}/runs")
    cfg = config(*words)
    write_run(tmp_path / "runs", cfg, 5.0)
    meta = {"data": "0123456789abcdef", "sessions": [{"versions": {"normloss": "0.2.0"}}]}
    (tmp_path / "runs" / cfg.id / "meta.json").write_text(json.dumps(meta))
    (tmp_path / "runs" / cfg.id / "status.json").write_text('{"state": "done", "step": 8}')
    line = refused(report_done, cfg, store.open_run(cfg))
    assert "restart=true trains anew, dataset.label=NAME makes a run of its own; normloss 0.2.0 read transpar" in line


@pytest.fixture
def decoded(tmp_path, capsys):
    """A tree that has been read once, its images, its cache, and what reading it again prints and gives."""
    root = tmp_path / "train"
    save_tree(root)
    first = folder.read_tree(root, tensor_config())
    assert capsys.readouterr().out == f"decoding 6 images of {root} (once)\n"
    (cache,) = (tmp_path / ".normloss").iterdir()

    def again():
        images = folder.read_tree(root, tensor_config()).images
        return images, capsys.readouterr().out

    return root, first.images, cache, again


CHANGES = {
    "later": lambda image: os.utime(image, ns=(0, image.stat().st_mtime_ns + 10**9)),
    "replaced": lambda image: save_image(image, seed=99),
    "added": lambda image: save_image(image.with_name("7.png"), seed=99),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_source_is_noticed(decoded, change):
    root, _, cache, again = decoded
    change(root / "dog/1.png")
    images, said = again()
    assert "decoding" in said
    expected = [np.asarray(Image.open(path)).transpose(2, 0, 1) for path in sorted(root.glob("*/*.png"))]
    np.testing.assert_array_equal(images, expected)
    (kept,) = cache.parent.iterdir()  # the old one is gone
    assert kept != cache


@pytest.mark.parametrize("harm", ["a flipped bit", "cut short"])
def test_a_damaged_cache_is_decoded_anew(decoded, harm):
    _, images, cache, again = decoded
    content = bytearray(cache.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 1
    cache.write_bytes(content if harm == "a flipped bit" else content[:middle])
    found, said = again()
    assert said == f"decoding 6 images of {cache.parents[1] / 'train'} (once)\n"
    for images_now, said in ((found, ""), again()):  # and a second read decodes nothing
        np.testing.assert_array_equal(images_now, images)
        assert said == ""


def test_where_no_cache_can_be_kept_a_line_says_so(tmp_path, capsys):
    save_tree(tmp_path / "train")
    (tmp_path / ".normloss").write_text("in the way")
    assert len(folder.read_tree(tmp_path / "train", tensor_config()).labels) == 6
    assert "no cache kept (File exists); the next run decodes again" in capsys.readouterr().out
