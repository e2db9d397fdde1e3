"""scripts/bench.py: what it prints and writes, and GPU figures driven on a CPU, where their values mean nothing."""

import json
import math
from functools import partial

import pytest
import torch

from benchmarks import epoch, gpu, imagenet
from benchmarks.precision import BITS, deviations, rounded
from normloss.training import executors
from tests.test_executors import Tape

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


def test_every_row_of_a_gpu_is_measured(monkeypatch):
    """Graphs are stood in for, and compiled without Inductor."""
    monkeypatch.setattr(executors, "CudaCapture", Tape)
    monkeypatch.setattr(executors, "obstacle", lambda *_: None)
    monkeypatch.setattr(executors, "Compiled", partial(executors.Compiled, backend="eager"))
    tiny = gpu.Net("tiny", ("dataset=digits", "model=resnet8", "train.batch_size=8", "threads=1"), images=10.0)
    rows = gpu.measure(blocks=1, device=torch.device("cpu"), nets=(tiny,), steps=2)
    assert sum(bool(row.target) for row in rows) == 6
    assert all(math.isfinite(row.value) for row in rows)


def test_emulated_precisions_are_as_far_from_float32_as_decisions_md_says():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-20, 20, 10_000)
    assert torch.equal(rounded(x, BITS["bf16"]), x.bfloat16().float())
    path = deviations()
    first = {name: values[0] for name, values in path.items()}
    assert first["another order"] < 1e-5 < 0.01 < first["tf32"] < 0.1
    assert first["tf32"] < first["bf16"] < 0.3
    assert path["another order"][-1] < path["tf32"][-1] < 1
