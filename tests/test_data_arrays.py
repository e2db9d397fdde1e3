"""One .npz file as a data set: MedMNIST's form, made of a tree by scripts/npz.py; and how it can be bad."""

import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from normloss.config.images import count_classes, folder_label
from normloss.data import arrays, folder
from normloss.data.tensors import fingerprint
from scripts import npz
from tests.conftest import refused
from tests.data_support import pixels, save_image, save_tree, tensor_config

GREY = dict(channels=1, mean=[1.0], std=[1.0])


def medmnist(**changes):
    """As MedMNIST's files are: val_* too, and labels (N, 1)."""
    labels = np.array([[0], [1], [2]], np.uint8)
    values = {
        "train_images": pixels(6, 6, 6, 3),
        "train_labels": np.concatenate([labels, labels]),
        "val_images": pixels(3, 6, 6, 3, seed=1),
        "val_labels": labels,
        "test_images": pixels(3, 6, 6, 3, seed=2),
        "test_labels": labels,
    }
    return {key: value for key, value in (values | changes).items() if value is not None}


def save(tmp_path, **changes):
    np.savez_compressed(tmp_path / "mine.npz", **medmnist(**changes))
    return tmp_path / "mine.npz"


@pytest.mark.parametrize("order", ["C", "F"])
def test_images_and_labels_are_read_as_they_are(tmp_path, order):
    values = medmnist()
    np.savez(tmp_path / "mine.npz", **{key: np.asarray(value, order=order) for key, value in values.items()})
    splits = folder.load(tensor_config(val="file"), tmp_path / "mine.npz")
    for part, split in zip(("train", "test", "val"), splits, strict=True):
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int64
        np.testing.assert_array_equal(split.images.transpose(0, 2, 3, 1), values[f"{part}_images"])
        assert split.labels.tolist() == values[f"{part}_labels"][:, 0].tolist()


@pytest.mark.parametrize("keys", [{}, GREY], ids=["colour", "grey"])
@pytest.mark.parametrize("shape", [(6, 6), (6, 6, 1), (6, 6, 3), (6, 6, 4), (9, 7), (28, 28, 3), (4, 11, 4), (3, 3)])
def test_other_sizes_and_channels_become_what_a_trees_images_do(tmp_path, shape, keys):
    cfg, images = tensor_config(**keys), pixels(6, *shape)
    split, _ = folder.load(cfg, save(tmp_path, train_images=images))
    for image, made in zip(images, split.images, strict=True):
        Image.fromarray(image.squeeze()).save(tmp_path / "one.png")
        np.testing.assert_array_equal(made, folder.read_square(tmp_path / "one.png", cfg.size, cfg.channels)[0])


def test_transparent_images_are_counted(tmp_path, capsys):
    images = np.zeros((6, 6, 6, 4), np.uint8)
    images[:4, ..., 3] = 255
    train, _ = folder.load(tensor_config(), save(tmp_path, train_images=images))
    assert train.images.max(axis=(1, 2, 3)).tolist() == [0, 0, 0, 0, 255, 255]
    assert "mine.npz: train_images: 2 images are transparent in places" in capsys.readouterr().out


def test_a_file_names_itself_and_counts_its_classes(tmp_path):
    assert folder_label(save(tmp_path)) == "mine" and count_classes(save(tmp_path)) == 3
    file = save(tmp_path, label=np.array("birds"), classes=np.array(["auk", "owl", "tit"]))
    assert folder_label(file) == "birds" and count_classes(file) == 3


@pytest.fixture
def tree(tmp_path):
    """Colour and grey, of several sizes: 12 + 6 images, and 3 beside them in val/."""
    for part, images in (("train", 4), ("test", 2), ("val", 1)):
        save_tree(tmp_path / "birds" / part, images=images, size=(19, 17))
        save_image(tmp_path / "birds" / part / "dog/0.png", mode="L", size=(16, 16), seed=5)
    return tmp_path / "birds"


WORDS = ["dataset=folder", "dataset.size=16", "model=resnet8", "recipe=cifar10_resnet110", "dataset.pad=2"]


@pytest.mark.parametrize("keys", [[], ["dataset.channels=1", "dataset.mean=[90]", "dataset.std=[60]"]])
def test_the_file_has_the_trees_id_and_fingerprint(tmp_path, tree, config, capsys, keys):
    assert npz.main([*WORDS, *keys, f"data_dir={tree}", "--out", str(tmp_path / "elsewhere.npz")]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"{tmp_path}/elsewhere.npz  12 + 6 + 3 images, ")
    assert "python train.py dataset=folder dataset.size=16 " in said
    assert said.endswith(f"data_dir={tmp_path}/elsewhere.npz")
    paths = tree, tmp_path / "elsewhere.npz"
    for val in ("0", "3", "file"):
        cfgs = [config(*WORDS, *keys, f"dataset.val={val}", f"data_dir={path}") for path in paths]
        assert cfgs[0].id == cfgs[1].id and cfgs[0].dataset.label == "birds" and cfgs[0].dataset.num_classes == 3
        splits = [folder.load(cfg.dataset, path) for cfg, path in zip(cfgs, paths, strict=True)]
        assert fingerprint(*splits[0]) == fingerprint(*splits[1])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["dataset=digits"], "dataset: must be folder, cifar10 or cifar100, got digits"),
        (["dataset=folder", "data_dir=/nowhere"], "no folder /nowhere/train that can be read (No such"),
        (["dataset=folder", "data_dir=HERE/birds", "--out=HERE/no/x.npz"], "--out: must be a folder that can be"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, tree, capsys, words, line):
    words = [word.replace("HERE", str(tmp_path)) for word in words]
    out = [] if words[-1].startswith("--out") else ["--out", str(tmp_path / "x.npz")]
    assert npz.main([*words, "model=resnet8", *out]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"normloss: {line.replace('HERE', str(tmp_path))}") and err.count("\n") == 1
    assert not (tmp_path / "x.npz").exists()


THREE = np.array([0, 1, 2])
BAD = {
    "none held out": (dict(val_images=None), "has no array val_images"),
    "no images": (dict(train_images=None), "has no array train_images; there are: train_labels"),
    "float images": (dict(train_images=np.zeros((6, 6, 6), np.float32)), "train_images must be uint8 (N, H, W) or"),
    "no pixels": (dict(train_images=pixels(6, 0, 6)), "got uint8 (6, 0, 6)"),
    "float labels": (dict(train_labels=np.zeros(6)), "train_labels must be integers (N,) or (N, 1), one per image"),
    "multi-label": (dict(train_labels=np.ones((6, 14), int)), "one per image, got int64 (6, 14)"),
    "too few labels": (dict(train_labels=THREE), "train_labels must be as many as train_images, 6, got 3"),
    "negative": (dict(train_labels=np.array([0, 1, 2, -1, 0, 1])), "train_labels must hold 0 to 2, each at least"),
    "an empty class": (dict(train_labels=np.array([0, 1, 1, 0, 1, 0])), "each at least once, got 0 1"),
    "a class in test only": (dict(test_labels=np.array([0, 1, 3])), "test_labels must hold 0 to 2, as in train_labels"),
    "huge labels": (dict(train_labels=np.array([0, 1, 2**63, 0, 1, 2], np.uint64)), "got 0 1 2 9223372036854775808"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_array_is_one_line_that_names_file_and_array(tmp_path, kind):
    changes, line = BAD[kind]
    file = save(tmp_path, **changes)
    said = refused(arrays.load, tensor_config(val="file"), file)
    assert said.startswith(f"{file}: ") and line in said


class Runs:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_pickled_objects_in_a_file_are_never_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train_images", "train_labels", "label", "classes"):
        file = save(tmp_path, **{name: np.array([Runs()] * 6, object)})
        said = refused(lambda file: (folder_label(file), count_classes(file), arrays.load(tensor_config(), file)), file)
        assert f"{name} cannot be read (Object arrays cannot be loaded" in said
    assert not (tmp_path / "ran").exists()


def header(shape, descr="|u1"):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize("shape", [
    (10**6, 10**6, 10**6), (2**62, 4, 3), (6, 6, 10**9), (-6, -6), (6, 6, 7), (5, 6, 6), (10**30, 1, 1),
])  # fmt: skip
def test_a_shape_that_the_file_does_not_hold_is_refused_before_memory_is_taken(tmp_path, shape):
    file = tmp_path / "mine.npz"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("train_images.npy", header(shape) + bytes(216))
        archive.writestr("train_labels.npy", header((6,)) + bytes([0, 1, 2, 0, 1, 2]))
    assert refused(arrays.load, tensor_config(), file).startswith((f"{file}: train_images ", f"{file}: train_labels "))
