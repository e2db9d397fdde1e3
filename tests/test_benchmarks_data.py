"""What the data benchmarks compare is the same work on both sides; their speeds are not judged here."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import data, demo, epoch, imagenet
from normloss.data.tensors import TensorData
from tests.data_support import CPU, smooth

pytestmark = pytest.mark.slow

FACTS = ("images/s", "kB", "ms")


def check(measured, judged):
    assert {row.subject: row.value for row in measured if not row.value > 0} == {}
    assert [row.unit for row in measured if row.verdict] == judged
    assert all(row.unit in FACTS for row in measured if not row.verdict)


# CIFAR ---------------------------------------------------------------------------------------------


def test_cifar_batches_are_measured():
    measured = data.measure(blocks=1)
    check(measured, ["x"])
    assert (measured[0].at_least, measured[0].at_most) == (10, None)
    assert measured[0].value == pytest.approx(measured[1].value / measured[2].value)


def test_both_sides_of_cifar_make_the_same_batches():
    split = data.random_images(2 * data.BATCH)
    ours = list(TensorData(data.CIFAR, split, split, 0, data.BATCH, CPU).train(0))
    reference = data.Reference(split)
    theirs = list(reference.batches())
    assert [(x.shape, x.dtype) for x, _ in ours] == [(x.shape, x.dtype) for x, _ in theirs]
    assert torch.cat([y for _, y in ours]).sort()[0].tolist() == torch.cat([y for _, y in theirs]).sort()[0].tolist()
    for transform in reference.transform.transforms[:2]:
        transform.padding, transform.p = None, 0.0  # neither crop nor flip
    plain = TensorData(data.CIFAR, split, split, 0, data.BATCH, CPU).test()
    x = torch.cat([x for x, _ in plain])
    for i in (0, 100, 255):
        torch.testing.assert_close(reference[i][0], x[i], rtol=1e-5, atol=1e-5)


# ImageNet ------------------------------------------------------------------------------------------


def test_imagenet_samples_are_measured_on_photographs_of_ones_own(tmp_path, monkeypatch):
    for i in range(3):
        smooth(300, 260, seed=i).save(tmp_path / f"{i}.jpg")
    monkeypatch.setenv(imagenet.FOLDER, str(tmp_path))
    measured = imagenet.measure(blocks=1)
    check(measured, ["x", "of 255"])
    assert measured[0].at_least == 1.6 and measured[1].at_most == 0.1
    assert measured[1].verdict == "pass"
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert measured[4].value == pytest.approx(np.mean(sizes) / 1000)


def test_the_difference_of_pixels_sees_a_change_of_one(tmp_path):
    path = tmp_path / "x.jpg"
    smooth(300, 260).save(path)
    crop, _ = imagenet.Crops([(path, 0)], imagenet.IMAGENET, imagenet.SEED)[imagenet.EPOCH, 0]
    assert imagenet.pixel_difference(crop, path, 0) < 0.1
    shifted = crop.int() + 1 - 2 * (crop > 127).int()  # one up or one down
    assert imagenet.pixel_difference(shifted, path, 0) == pytest.approx(1, abs=0.1)


def test_photographs_made_on_the_spot_are_like_imagenets(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, "IMAGES", 8)
    files = imagenet.make_photographs(tmp_path)
    assert len(set(files)) == 8
    images = [Image.open(path) for path in files]
    assert all(image.format == "JPEG" and image.mode == "RGB" for image in images)
    assert 380 < np.mean([np.sqrt(image.width * image.height) for image in images]) < 460  # ImageNet: 468 x 401
    assert 80_000 < np.mean([path.stat().st_size for path in files]) < 140_000  # ImageNet: 110 kB


def test_many_photographs_are_thinned_out_and_none_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, "IMAGES", 4)
    with pytest.raises(ValueError, match=f"^{tmp_path}: must hold"):
        imagenet.photographs(tmp_path)
    for name in [*(f"{i}.JPEG" for i in range(10)), "a.png"]:
        (tmp_path / name).touch()
    assert [path.name for path in imagenet.photographs(tmp_path)] == ["0.JPEG", "3.JPEG", "6.JPEG", "9.JPEG"]


# training ------------------------------------------------------------------------------------------


def test_an_epoch_is_measured(monkeypatch):
    monkeypatch.setattr(epoch, "OVERRIDES", [*epoch.OVERRIDES, "model=resnet8", "train.batch_size=16"])
    measured = epoch.measure(blocks=1)
    check(measured, ["x"])
    assert measured[0].at_least == 1.1 and measured[0].value == pytest.approx(measured[2].value / measured[1].value)


def test_both_sides_of_an_epoch_train_alike(config):
    cfg = config(*epoch.OVERRIDES, "model=resnet8", "train.batch_size=16")
    images = data.random_images(3 * 16)
    sides = []
    for side in (epoch.Ours, epoch.Plain):
        torch.manual_seed(0)
        sides.append(side(cfg, images))
    for ours, plain in zip(*(side.model.parameters() for side in sides), strict=True):
        assert torch.equal(ours, plain)
    before = [parameter.detach().clone() for parameter in sides[0].model.parameters()]
    losses = [side.epoch() for side in sides]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)  # the same images in another order, cropped elsewhere
    steps = [
        torch.cat([(p - b).flatten() for p, b in zip(side.model.parameters(), before, strict=True)]) for side in sides
    ]
    assert torch.cosine_similarity(*steps, dim=0) > 0.5 and 0.7 < steps[0].norm() / steps[1].norm() < 1.4


# the demo ------------------------------------------------------------------------------------------


def test_the_demo_is_measured(monkeypatch):
    monkeypatch.setattr(demo, "RUN", [*demo.RUN, "train.max_steps=2"])
    accuracy, seconds = demo.measure()
    assert (accuracy.at_least, seconds.at_most) == (99, 30)
    assert 0 <= accuracy.value < 60 and seconds.value > 0  # two steps do not learn ten digits


def test_a_demo_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(demo, "RUN", [*demo.RUN, "train.lr=-1"])
    with pytest.raises(RuntimeError, match=r"(?s)status 2:.*train.lr: must be greater than 0"):
        demo.measure()
