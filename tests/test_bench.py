"""scripts/bench.py: what it prints and writes, and GPU figures driven on a CPU, where their values mean nothing."""

import json
import math
from functools import partial

import pytest
import torch

from benchmarks import forms, gpu
from benchmarks.precision import deviations
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


def test_every_row_of_a_gpu_is_measured(config, monkeypatch):
    """Graphs are stood in for, and compiled without Inductor."""
    monkeypatch.setattr(executors, "CudaCapture", Tape)
    monkeypatch.setattr(executors, "obstacle", lambda *_: None)
    monkeypatch.setattr(executors, "Compiled", partial(executors.Compiled, backend="eager"))
    tiny = gpu.Net("tiny", "dataset=digits model=resnet8 train.batch_size=8 threads=1", images=10.0)
    rows = gpu.measure(blocks=1, device=torch.device("cpu"), nets=(tiny,), steps=2)
    assert sum(bool(row.target) for row in rows) == 5
    assert all(math.isfinite(row.value) for row in rows)


def test_emulated_precisions_are_as_far_from_float32_as_decisions_md_says():
    path = deviations()
    first = {name: 100 * values[0] for name, values in path.items()}
    assert (round(first["tf32"]), round(first["bf16"])) == (5, 14)
    assert first["another order"] < 1e-3
    assert path["another order"][-1] < path["tf32"][-1] < path["bf16"][-1] < 1


@pytest.mark.parametrize(
    ("speed", "chosen"),
    [
        ({"eager": 100.0, "graph": 300.0, "compile": 329.0}, "graph"),
        ({"eager": 100.0, "graph": 300.0, "compile": 331.0}, "compile"),
        ({"eager": 331.0, "graph": 300.0}, "eager"),
        ({"eager": 100.0, "compile": 109.0}, "eager"),
    ],
)
def test_a_form_has_to_be_a_tenth_faster_than_the_usual_one(speed, chosen):
    assert forms.fastest(speed) == chosen
