"""scripts/bench.py and gpu_check.py as far as a CPU goes: what they write, and what auto's choice rests on."""

import json
import subprocess
from functools import partial

import pytest
import torch

from benchmarks import forms
from benchmarks.precision import deviations
from benchmarks.steps import StepLoop
from normloss.training import executors
from normloss.training.eager import Compiled


@pytest.mark.slow
def test_overhead_has_a_row_a_method_relative_to_the_first(load_script, tmp_path):
    words = "overhead --model resnet8 --batch 2 --blocks 2 --device cpu --methods none,nl --out"
    assert load_script("bench").main([*words.split(), str(tmp_path)]) == 0
    none, nl = json.loads((tmp_path / "overhead_resnet8_cpu.json").read_text())["rows"]
    assert (none["method"], nl["method"], none["ratio_to_none"]) == ("none", "nl", 1.0)
    assert 0 < nl["step_min_ms"] <= nl["step_ms"] <= nl["step_max_ms"]
    assert 0 < none["update_ms"] < nl["step_ms"]


@pytest.mark.slow
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
        ({"eager": 100.0, "compile": 109.0}, "eager"),
    ],
)
def test_a_form_has_to_be_a_tenth_faster_than_the_usual_one(speed, chosen):
    assert forms.fastest(speed) == chosen


class WithoutPenalty(Compiled):
    def step(self, x, y):
        lam, self.reg.lam = self.reg.lam, 0.0
        result = super().step(x, y)
        self.reg.lam = lam
        return result


@pytest.mark.parametrize(("executor", "equal"), [(Compiled, True), (WithoutPenalty, False)])
def test_a_step_that_leaves_something_out_is_not_the_eager_one(config, monkeypatch, tmp_path, executor, equal):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(executors, "Compiled", partial(executor, backend="eager"))
    torch._dynamo.reset()
    words = ["dataset=digits", "model=resnet8", "train.batch_size=8", "reg.lam=10.0", "train.executor=compile"]
    loop = StepLoop(config(*words), torch.device("cpu"))
    loop.warm_up()
    assert [line.partition(":")[0] for line in forms.disagreements(loop)] == ([] if equal else ["compile from eager"])


def test_a_window_packs_its_store_in_parts_and_goes_on_with_them(load_script, monkeypatch, tmp_path):
    check = load_script("gpu_check")
    monkeypatch.setattr(check, "TESTS", ())
    monkeypatch.setattr(check, "measure", lambda words, seconds: None)
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **options:
                        trained.append(command) if "train.py" in command else run(command, **options))  # fmt: skip
    trained, large = [], bytes(range(256)) * 70_000  # 18 MB
    window = ["--window=2", "--device=cpu", f"--pack={tmp_path / 'packed'}"]
    (tmp_path / "first" / "12345678").mkdir(parents=True)
    (tmp_path / "first" / "12345678" / "last.pt").write_bytes(large)
    assert check.main([*window, f"--store={tmp_path / 'first'}"]) == 0
    parts = sorted((tmp_path / "packed").iterdir())
    assert [part.name for part in parts] == ["window.tar.000", "window.tar.001"]
    assert all(part.stat().st_size <= 15_000_000 for part in parts)
    assert check.main([*window, f"--store={tmp_path / 'second'}"]) == 0
    assert (tmp_path / "second" / "12345678" / "last.pt").read_bytes() == large
    assert json.loads((tmp_path / "second" / "gpu_check.json").read_text())["minutes"] == 2
    assert [command[2] for command in trained] == ["experiment=demo"] * 2
    budgets = [float(command[3].removeprefix("budget_minutes=")) for command in trained]
    assert all(0.8 < minutes <= 1 for minutes in budgets)  # a minute is for packing
