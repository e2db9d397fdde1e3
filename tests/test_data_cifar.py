"""CIFAR from a tree, an .npz file, Krizhevsky's archive or its unpacked folder; and every file of these damaged."""

import socket

import numpy as np
import pytest
import torchvision

from normloss.data import cifar, cifar_archive
from normloss.data.tensors import TensorData, fingerprint
from tests.conftest import refused
from tests.data_support import CPU, cifar_config, pixels, save_archive, save_tree

NAMES = ["cifar10", "cifar100"]


@pytest.fixture(autouse=True)
def host(monkeypatch, tmp_path_factory):
    """Where the archives are downloaded from."""
    folder = tmp_path_factory.mktemp("host")
    monkeypatch.setattr(cifar_archive, "URL", f"{folder.as_uri()}/")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_checksums_are_torchvisions(monkeypatch, name):
    monkeypatch.undo()  # of `host`
    theirs = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    ours = cifar_archive.ARCHIVES[name]
    assert (ours.file, ours.md5, ours.folder) == (theirs.filename, theirs.tgz_md5, theirs.base_folder)
    assert list(ours.train.items()) == list(map(tuple, theirs.train_list))
    assert list(ours.test.items()) == list(map(tuple, theirs.test_list))
    assert cifar_archive.URL + ours.file == theirs.url


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("packed", [True, False], ids=["archive", "folder"])
def test_the_archive_and_its_folder_hold_the_same_images(tmp_path, monkeypatch, name, packed):
    images, labels = save_archive(monkeypatch, tmp_path, name, packed)
    train, test = cifar.load(cifar_config(name), tmp_path)
    np.testing.assert_array_equal(np.concatenate([train.images, test.images]), images)
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), labels)
    assert len(test.labels) == 3 and train.labels.dtype == np.int64
    x, y = next(TensorData(cifar_config(name), train, test, 0, 2, CPU).train(0))
    assert x.shape == (2, 3, 32, 32) and y.shape == (2,)
    archive = cifar_archive.ARCHIVES[name]
    for data_dir in (tmp_path, tmp_path / (archive.file if packed else archive.folder)):
        assert fingerprint(*cifar.load(cifar_config(name), data_dir)) == fingerprint(train, test)
    kept = {path.name for path in (tmp_path, *tmp_path.rglob("*")) if path.is_file()}
    assert kept == {*archive.train, *archive.test, *([archive.file] if packed else [])}  # nothing half unpacked


def test_a_folder_that_lacks_a_file_is_filled_from_the_archive(tmp_path, monkeypatch):
    save_archive(monkeypatch, tmp_path)
    before = fingerprint(*cifar.load(cifar_config(), tmp_path))
    (tmp_path / "cifar-10-batches-py/data_batch_3").unlink()
    assert fingerprint(*cifar.load(cifar_config(), tmp_path)) == before


def test_a_download_is_checked_unpacked_and_kept(tmp_path, monkeypatch, host, capsys):
    images, _ = save_archive(monkeypatch, host)
    data_dir = tmp_path / "not" / "there"
    train, test = cifar.load(cifar_config(), data_dir)
    np.testing.assert_array_equal(np.concatenate([train.images, test.images]), images)
    assert "downloading " in capsys.readouterr().out
    cifar.load(cifar_config(), data_dir)
    assert capsys.readouterr().out == ""
    assert {path.name for path in data_dir.iterdir()} == {"cifar-10-python.tar.gz", "cifar-10-batches-py"}


def refusal(*arguments):
    return refused(cifar.load, *arguments)


DAMAGE = {
    "cut short": (lambda content: content[:-100], "is damaged or another file"),
    "empty": (lambda content: b"", "is damaged or another file (0 bytes)"),
    "a web page": (lambda content: b"\n<!DOCTYPE html><html>Log in", "is a web page, not the archive"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_archive_is_named(tmp_path, monkeypatch, kind):
    save_archive(monkeypatch, tmp_path)
    damage, says = DAMAGE[kind]
    file = tmp_path / "cifar-10-python.tar.gz"
    file.write_bytes(damage(file.read_bytes()))
    line = refusal(cifar_config(), tmp_path)
    assert line.startswith(f"{file}: {says}") and line.endswith("; delete it, and it is fetched anew")


def test_a_flipped_byte_in_an_unpacked_file_is_named_and_never_unpickled(tmp_path, monkeypatch):
    save_archive(monkeypatch, tmp_path, packed=False)
    file = tmp_path / "cifar-10-batches-py/data_batch_2"
    file.write_bytes(b"cposix\nsystem\n(S'touch " + bytes(tmp_path / "run") + b"'\ntR.")
    assert refusal(cifar_config(), tmp_path).startswith(f"{file}: is damaged or another file")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content, says", [(b"<html>", "a web page"), (b"1234", "damaged or another file (4 bytes)")])
@pytest.mark.parametrize("name", NAMES)
def test_a_download_of_something_else_leaves_nothing(tmp_path, host, name, content, says):
    archive = cifar_archive.ARCHIVES[name]
    (host / archive.file).write_bytes(content)
    data_dir = tmp_path / "data"
    line = refusal(cifar_config(name), data_dir)
    assert line.startswith(f"no {name}: looked for {data_dir / name}/train, {data_dir}/train, ")
    for part in ("the download failed", says, "<class>/*.png", archive.file, "dataset=digits"):
        assert part in line
    assert not data_dir.exists()


def test_a_host_that_says_nothing_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar_archive, "SILENCE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(cifar_archive, "URL", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        assert "the download failed (timed out)" in refusal(cifar_config(), tmp_path)


def test_a_tree_of_the_wrong_size_is_refused(tmp_path):
    for split in ("train", "test"):
        save_tree(tmp_path / "cifar10" / split, classes=[f"class{k}" for k in range(10)], images=1, size=(32, 32))
    line = f"{tmp_path}/cifar10: train must hold 5000 images of each class for cifar10, got 1 of class 0"
    assert refusal(cifar_config(), tmp_path) == line


def test_an_npz_file_serves_if_it_is_the_whole_set(tmp_path, monkeypatch):
    arrays = {
        f"{part}_{what}": values
        for part, images in (("train", 30), ("test", 20), ("val", 10))
        for what, values in (("images", pixels(images, 32, 32, 3)), ("labels", np.arange(images) % 10))
    }
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)
    line = f"{path}: train must hold 5000 images of each class for cifar10, got 3 of class 0"
    assert refusal(cifar_config(), path) == line
    monkeypatch.setattr(cifar, "IMAGES", {"train": 30, "test": 20})
    train, test = cifar.load(cifar_config(), path)
    np.testing.assert_array_equal(train.images.transpose(0, 2, 3, 1), arrays["train_images"])
    np.testing.assert_array_equal(test.labels, arrays["test_labels"])
    monkeypatch.setattr(cifar, "IMAGES", {"train": 40, "test": 20})
    assert len(cifar.load(cifar_config(val="file"), path)) == 3  # held out by whoever made the file
