"""Images held out of the training set (dataset.val): which they are, that nothing else changes, and what is refused."""

import hashlib

import numpy as np
import pytest
import torch

import train
from normloss import data, models
from normloss.data.tensors import choose_held_out
from normloss.runs import records
from tests.conftest import refused
from tests.data_support import CPU, imagenet_data, same, save_photographs, save_tree

DIGITS = ["dataset=digits", "model=resnet8", "device=cpu", "threads=1", "wandb.mode=disabled"]


@pytest.mark.parametrize("count", [10, 11, 500, 5000, 5007, 49_990])
def test_each_class_gives_as_many_or_one_more(count):
    labels = np.random.default_rng(0).permutation(np.arange(50_000) % 10)
    chosen = choose_held_out(labels, count)
    given = np.bincount(labels[chosen], minlength=10)
    assert chosen.dtype == bool and chosen.sum() == count == given.sum()
    assert given.max() - given.min() == (count % 10 > 0)
    uneven = np.repeat([0, 1, 2], [30, 5, 200])
    assert np.bincount(uneven[choose_held_out(uneven, 12)]).tolist() == [4, 4, 4]


def test_which_images_are_held_out_never_changes():
    chosen = choose_held_out(np.arange(50_000) % 10, 5000)
    assert hashlib.sha256(np.packbits(chosen).tobytes()).hexdigest()[:16] == "309a14cbeefe376e"


@pytest.mark.parametrize("count, line", [
    (2, "dataset.val: must be at least 3, an image of each class, got 2"),
    (100, "dataset.val: must leave images of each class to train on, got 100: 33 images of class 1, which has 5"),
    (18, "dataset.val: must leave images of each class to train on, got 18: 6 images of class 1, which has 5"),
    (15, "dataset.val: must leave images of each class to train on, got 15: 5 images of class 1, which has 5"),
])  # fmt: skip
def test_a_number_that_the_set_cannot_give_is_refused(count, line):
    labels = np.repeat([0, 1, 2], [45, 5, 50])
    assert refused(choose_held_out, labels, count) == line


def test_the_rest_is_trained_on_in_its_order(config):
    cfg = config(*DIGITS, "dataset.val=300")
    whole, rest = data.build(config(*DIGITS), CPU), data.build(cfg, CPU)
    assert (rest.train_size, rest.val_size, rest.test_size) == (1137, 300, 360)
    assert rest.steps_per_epoch == 18
    held = choose_held_out(whole.labels.numpy(), 300)
    images = whole.windows[:, :, 2, 2]  # in the middle: the images themselves
    assert torch.equal(rest.windows[:, :, 2, 2], images[~held]) and torch.equal(rest.labels, whole.labels[~held])
    assert torch.equal(rest.parts["val"][0], images[held]) and torch.equal(rest.parts["val"][1], whole.labels[held])
    assert same(rest.in_order("test"), whole.in_order("test"))
    x, y = (torch.cat(part) for part in zip(*rest.in_order("val"), strict=True))
    assert torch.equal(x, rest.normalise(images[held])) and y.bincount().tolist() == [30] * 10
    assert not list(whole.in_order("val"))
    assert whole.fingerprint != rest.fingerprint
    other = data.build(config(*DIGITS, "dataset.val=300", "seed=7", "reg=wd", "train.batch_size=32"), CPU)
    assert other.fingerprint == rest.fingerprint


def test_a_trees_val_folder_is_held_out_where_asked_for(tmp_path, config):
    for part, images in (("train", 3), ("test", 1), ("val", 2)):
        save_tree(tmp_path / part, images=images)
    words = ["dataset=folder", "dataset.size=6", "model=resnet8", "recipe=cifar10_resnet110", f"data_dir={tmp_path}"]
    for val, sizes in (("0", (9, 3, 0)), ("3", (6, 3, 3)), ("file", (9, 3, 6))):
        built = data.build(config(*words, f"dataset.val={val}"), CPU)
        assert (built.train_size, built.test_size, built.val_size) == sizes
    (tmp_path / "test").rename(tmp_path / "away")
    line = f"dataset.val: file needs test/ and val/ in {tmp_path}, got val/ only"
    assert line in refused(data.build, config(*words, "dataset.val=file"), CPU)


@pytest.mark.parametrize("workers", [0, 2])
def test_files_are_held_out_of_photographs(tmp_path, workers):
    root = save_photographs(tmp_path)
    whole, rest = imagenet_data(root), imagenet_data(root, workers, val=4)
    files = whole.train_loader.dataset.files
    held = choose_held_out(np.array([label for _, label in files]), 4)
    assert rest.train_loader.dataset.files == [file for file, out in zip(files, held, strict=True) if not out]
    assert rest.loaders["val"].dataset.files == [file for file, out in zip(files, held, strict=True) if out]
    assert (rest.train_size, rest.val_size, rest.test_size) == (6, 4, 10)
    assert torch.cat([y for _, y in rest.in_order("val")]).tolist() == [0, 0, 1, 1]
    assert torch.cat([y for _, y in rest.train(0)]).bincount().tolist() == [2, 4]
    assert same(rest.in_order("test"), whole.in_order("test")) and not list(whole.in_order("val"))
    tested = whole.loaders["train"].dataset
    expected = torch.stack([tested[i][0] for i in np.flatnonzero(held)]) / 255
    found = torch.cat([x for x, _ in rest.in_order("val")])
    torch.testing.assert_close(found, (expected - rest.mean) / rest.std, rtol=0, atol=1e-6)


def test_val_error_is_that_of_the_stored_weights_on_the_images_held_out(config, tmp_path, capsys):
    words = [*DIGITS, "dataset.val=300", "train.epochs=1", "train.milestones=[]", "train.max_steps=5"]
    cfg = config(*words, f"store={tmp_path}")
    train.train(cfg)
    run = records.load_run(tmp_path / cfg.id)
    (epoch,) = run.epochs
    assert f"test {epoch['test_error']:.2f} %  val {epoch['val_error']:.2f} %  norms" in capsys.readouterr().out
    keys = list(epoch)
    assert keys[keys.index("test_error_top5") + 1 :][:2] == ["val_ce", "val_error"]
    assert run.final["val_error"] == epoch["val_error"]
    whole = data.build(config(*DIGITS), CPU)
    held = torch.from_numpy(choose_held_out(whole.labels.numpy(), 300))
    model = models.build(cfg.model, 10, 1)
    model.load_state_dict(torch.load(run.path / "last.pt", weights_only=True)["model"])
    with torch.no_grad():
        logits = model.eval()(whole.normalise(whole.windows[:, :, 2, 2][held])).double()
    wrong = (logits.argmax(1) != whole.labels[held]).double().mean()
    assert epoch["val_error"] == pytest.approx(100 * float(wrong))
    ce = torch.nn.functional.cross_entropy(logits, whole.labels[held])
    assert epoch["val_ce"] == pytest.approx(float(ce), rel=1e-5)
