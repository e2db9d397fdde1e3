"""Own images as people have them: transparent, turned, of many formats, with labels that disagree."""

import json

import numpy as np
import pytest
from PIL import Image

import train as script
from normloss import data
from normloss.analysis.study import read_conditions
from normloss.data import folder
from normloss.errors import UserError
from normloss.runs import store
from tests.data_support import CPU, pixels, save_image, save_tree, tensor_config

WORDS = ("dataset=folder", "dataset.size=6", "dataset.pad=0", "model=resnet8", "recipe=cifar10_resnet110")


def icon(path, seed):
    """Black, with a random shape in its transparency."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.zeros((6, 6, 4), np.uint8)
    image[..., 3] = pixels(6, 6, seed=seed) // 128 * 255
    Image.fromarray(image).save(path)


def test_transparent_icons_are_told_apart_and_counted_once_cached_or_not(tmp_path, capsys):
    for i in range(80):
        icon(tmp_path / f"train/{'abc'[i % 3]}/{i}.png", seed=i)
    for _ in range(2):
        split = folder.read_tree(tmp_path / "train", tensor_config())
        assert len(np.unique(split.images, axis=0)) == 80
        assert set(np.unique(split.images)) == {0, 255}
        said = capsys.readouterr().out
        assert said.count(f"{tmp_path}/train: 80 images are transparent in places, which are white to the network") == 1


@pytest.mark.parametrize("mode", ["LA", "P", "L"])
def test_transparency_of_any_kind_is_white(tmp_path, mode):
    image, options = Image.new(mode, (6, 6), (9, 0) if mode == "LA" else 9), {}
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    if mode != "LA":
        options["transparency"] = 9  # a colour of the palette, or a grey
    image.save(tmp_path / "x.png", **options)
    found, transparent = folder.decode(tmp_path / "x.png", 6, 3)
    assert transparent and (found == 255).all()


def test_arrays_with_transparency_are_on_white_too(tmp_path, capsys):
    images = np.zeros((6, 6, 6, 4), np.uint8)
    images[:4, ..., 3] = 255  # two of six are transparent
    labels = np.arange(6) % 3
    test = pixels(3, 6, 6, 3)
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=labels, test_images=test, test_labels=labels[:3])
    train, _ = folder.load(tensor_config(), tmp_path / "x.npz")
    assert train.images.max(axis=(1, 2, 3)).tolist() == [0, 0, 0, 0, 255, 255]
    assert "x.npz: train_images: 2 images are transparent in places" in capsys.readouterr().out


def test_every_format_is_read_and_what_is_not_is_counted_cached_or_not(tmp_path, capsys):
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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(tmp_path, orientation):
    """A grey picture whose top left corner is bright, stored in each of EXIF's eight ways."""
    upright = np.full((6, 6), 40, np.uint8)
    upright[:3, :2] = 240
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.T, 6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    tags = Image.Exif()
    tags[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x.png", exif=tags)
    np.testing.assert_array_equal(folder.decode(tmp_path / "x.png", 6, 1)[0][0], upright)


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


def test_ordinary_images_are_no_remark(tmp_path):
    save_tree(tmp_path / "train"), save_tree(tmp_path / "test")
    for k, name in enumerate(("cat", "dog", "emu")):
        for i in range(2):
            save_image(tmp_path / f"test/{name}/{i}.png", seed=100 + 10 * k + i)
    assert folder.remarks(*folder.load(tensor_config(), tmp_path)) == []


def test_one_class_is_refused(tmp_path, config):
    for part in ("train", "test"):
        save_tree(tmp_path / part, classes=("cat",))
    with pytest.raises(UserError, match=r"^dataset\.num_classes: must be at least 2, got 1"):
        config(*WORDS, f"data_dir={tmp_path}")


def test_a_class_too_small_to_hold_images_out_of_is_named(tmp_path, config):
    for part in ("train", "test"):
        save_tree(tmp_path / part, images=6)
    for i in range(1, 6):
        (tmp_path / f"train/dog/{i}.png").unlink()
    with pytest.raises(UserError) as error:
        data.build(config(*WORDS, f"data_dir={tmp_path}", "dataset.val=10"), CPU)
    line = "dataset.val: must leave images of each class to train on, got 10: 3 images of dog, which has 1"
    assert str(error.value) == line


def test_a_finished_run_on_images_that_are_read_otherwise_now_is_refused_with_the_reason(tmp_path, config):
    for part in ("train", "test"):
        save_tree(tmp_path / "mine" / part, mode="RGBA", images=4)
    words = (*WORDS, "train.epochs=1", "train.milestones=[]", "train.max_steps=1", "train.batch_size=4", "device=cpu")
    cfg = config(*words, f"data_dir={tmp_path}/mine", "wandb.mode=disabled", "threads=1", f"store={tmp_path}/runs")
    script.train(cfg)
    file = tmp_path / "runs" / cfg.id / "meta.json"
    meta = json.loads(file.read_text())
    assert meta["classes"] == ["cat", "dog", "emu"]
    meta["data"] = "0123456789abcdef"
    meta["sessions"][0]["versions"]["normloss"] = "0.2.0"
    file.write_text(json.dumps(meta))
    with pytest.raises(UserError, match="normloss 0.2.0 read transparent and turned images, tif and gif in"):
        data.refuse_changed(cfg, store.open_run(cfg))


@pytest.mark.parametrize("name", ["1e3", "null", "0x1F", "true"])
def test_a_folder_named_like_a_number_is_found_by_a_condition(tmp_path, config, name):
    (tmp_path / name / "train/cat").mkdir(parents=True)
    (tmp_path / name / "train/dog").mkdir()
    assert config(*WORDS, f"data_dir={tmp_path}/{name}").dataset.label == name
    for words in (f"dataset.label={name}", f"dataset.label='{name}'"):
        assert read_conditions([words]) == {"dataset.label": [name]}
