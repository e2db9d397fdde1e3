"""scripts/bench.py: what it prints and writes, how it times, and that both sides of a figure do the same work."""

import json
import sys

import pytest
import torch

from benchmarks import data, epoch, imagenet
from benchmarks.steps import config as config_of
from benchmarks.steps import random_images
from benchmarks.timing import Measurement, cpu_seconds, interleave
from normloss.data.tensors import TensorData
from tests.data_support import CPU, smooth

pytestmark = pytest.mark.slow


def test_overhead_has_a_row_a_method_relative_to_the_first(load_script, tmp_path, capsys):
    words = "overhead --model resnet8 --batch 2 --blocks 2 --device cpu --methods none,nl --out"
    assert load_script("bench").main([*words.split(), str(tmp_path)]) == 0
    written = json.loads((tmp_path / "overhead_resnet8_cpu.json").read_text())
    assert (written["model"], written["batch"], written["blocks"], written["device"]) == ("resnet8", 2, 2, "cpu")
    none, nl = written["rows"]
    assert (none["method"], nl["method"], none["ratio_to_none"]) == ("none", "nl", 1.0)
    assert 0 < nl["step_min_ms"] <= nl["step_ms"] <= nl["step_max_ms"]
    assert 0 < none["update_ms"] < nl["step_ms"]
    assert "| method | ms per step (min-max) | ratio to none | ms regularizer + SGD |" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["data", "imagenet", "epoch", "update"])
def test_a_subject_is_measured_printed_and_written(load_script, tmp_path, capsys, monkeypatch, what):
    monkeypatch.setattr(imagenet, "IMAGES", 4)
    monkeypatch.setattr(epoch, "OVERRIDES", [*epoch.OVERRIDES, "model=resnet8", "train.batch_size=16"])
    assert load_script("bench").main([what, "--blocks=1", f"--out={tmp_path}"]) == 0
    rows = json.loads((tmp_path / f"{what}.json").read_text())["rows"]
    assert all(row["value"] > 0 for row in rows) and any(row["target"] for row in rows)
    assert all(f"| {row['subject']} | " in capsys.readouterr().out for row in rows[:1])


def test_a_measurement_is_judged_by_its_target():
    rows = [Measurement("", 9.5, "x", at_least=10), Measurement("", 24, "", at_most=60), Measurement("", 1.5, "ms")]
    assert [(row.target, row.verdict) for row in rows] == [("at least 10", "short"), ("at most 60", "pass"), ("", "")]


def test_ratios_are_medians_of_ratios_within_a_block():
    now, seconds = [0.0], {"a": iter([100, 2, 9, 4]), "b": iter([100, 1, 1, 4])}  # the first of each is not counted

    def work(name: str) -> None:
        now[0] += next(seconds[name])

    times = interleave({name: lambda name=name: work(name) for name in seconds}, blocks=3, clock=lambda: now[0])
    assert times.seconds == {"a": [2, 9, 4], "b": [1, 1, 4]}
    assert times.ratio("a", "b") == 2
    assert times.median("a") == 4


def test_a_command_that_fails_is_reported_with_its_output():
    with pytest.raises(RuntimeError, match="status 3:\nno luck"):
        cpu_seconds([sys.executable, "-c", "import sys; print('no luck'); sys.exit(3)"])


def test_both_sides_of_cifar_make_the_same_batches():
    split = random_images(2 * data.BATCH, data.CIFAR)
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


def test_the_difference_of_pixels_sees_a_change_of_one(tmp_path):
    path = tmp_path / "x.jpg"
    smooth(300, 260).save(path)
    crop, _ = imagenet.Crops([(path, 0)], imagenet.IMAGENET, imagenet.SEED)[imagenet.EPOCH, 0]
    assert imagenet.pixel_difference(crop, path, 0) < 0.1
    shifted = crop.int() + 1 - 2 * (crop > 127).int()  # one up or one down
    assert imagenet.pixel_difference(shifted, path, 0) == pytest.approx(1, abs=0.1)


def test_a_config_is_the_one_run_of_its_words(config):
    assert config_of("dataset=digits", "model=resnet8").id == config("dataset=digits", "model=resnet8").id
