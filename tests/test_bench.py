"""scripts/bench.py: what it prints and writes, and how it times and counts."""

import importlib.util
import json
from types import SimpleNamespace

import pytest

from benchmarks import update
from benchmarks.operations import launched
from benchmarks.timing import Measurement, interleave
from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench", ROOT / "scripts" / "bench.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_overhead_has_a_row_a_method_relative_to_the_first(bench, tmp_path, capsys):
    words = "overhead --model resnet8 --batch 2 --blocks 2 --device cpu --methods none,nl --out"
    assert bench.main([*words.split(), str(tmp_path)]) == 0
    written = json.loads((tmp_path / "overhead_resnet8_cpu.json").read_text())
    assert (written["model"], written["batch"], written["blocks"], written["device"]) == ("resnet8", 2, 2, "cpu")
    none, nl = written["rows"]
    assert (none["method"], nl["method"], none["ratio_to_none"]) == ("none", "nl", 1.0)
    assert 0 < nl["step_min_ms"] <= nl["step_ms"] <= nl["step_max_ms"]
    assert 0 < none["update_ms"] < nl["step_ms"]
    assert "| method | ms per step (min-max) | ratio to none | ms regularizer + SGD |" in capsys.readouterr().out


def test_cpu_runs_every_subject_and_says_which_bars_are_short(bench, tmp_path, capsys, monkeypatch):
    measured = {
        "benchmarks.one": [Measurement("speed", 9.5, "x", at_least=10)],
        "benchmarks.two": [Measurement("launches", 24, "", at_most=60), Measurement("time", 1.5, "ms")],
    }
    monkeypatch.setattr(bench, "CPU", ["one", "two"])
    subjects = {name: SimpleNamespace(measure=lambda blocks, found=found: found) for name, found in measured.items()}
    monkeypatch.setattr(bench, "importlib", SimpleNamespace(import_module=subjects.__getitem__))
    assert bench.main(["cpu", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    assert [(row["subject"], row["target"], row["verdict"]) for row in rows] == [
        ("speed", "at least 10", "short"),
        ("launches", "at most 60", "pass"),
        ("time", "", ""),
    ]
    assert "| speed | 9.5 x | at least 10 | short |" in capsys.readouterr().out


def test_ratios_are_medians_of_ratios_within_a_block():
    now, seconds = [0.0], {"a": iter([100, 2, 9, 4]), "b": iter([100, 1, 1, 4])}  # the first of each is not counted

    def work(name: str) -> None:
        now[0] += next(seconds[name])

    times = interleave({name: lambda name=name: work(name) for name in seconds}, blocks=3, clock=lambda: now[0])
    assert times.seconds == {"a": [2, 9, 4], "b": [1, 1, 4]}
    assert times.ratio("a", "b") == 2
    assert times.median("a") == 4


def test_the_update_counts_fewer_launches_than_autograd():
    works = update.contenders("resnet8")
    for work in works.values():
        work()
    counts = {name: len(launched(work)) for name, work in works.items()}
    assert counts["wd"] == 2  # one addition and the fused SGD
    assert counts["nl"] < 25 < counts["autograd"]
