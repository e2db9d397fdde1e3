"""scripts/gpu_check.py, driven without a GPU: real tests are run and read, a real benchmark's rows are written."""

import json

import pytest
import torch

from benchmarks.timing import Measurement

EXAMPLES = """
import pytest

def test_that_passes(): pass

def test_that_is_skipped(): pytest.skip("no such device")

def test_that_fails(): assert 1 == 2
"""


@pytest.fixture
def gpu_check(load_script):
    return load_script("gpu_check")


def test_without_a_device_it_says_so(gpu_check, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "normloss: gpu_check: needs a CUDA device, got none\n"
    assert list(tmp_path.iterdir()) == []


def test_outcomes_are_read_from_a_real_run_of_pytest(gpu_check, tmp_path, capsys):
    (tmp_path / "test_examples.py").write_text(EXAMPLES)
    tests = gpu_check.run_tests(str(tmp_path))
    assert [(test.name, test.outcome) for test in tests] == [
        ("test_examples::test_that_passes", "passed"),
        ("test_examples::test_that_is_skipped", "skipped"),
        ("test_examples::test_that_fails", "failed"),
    ]
    assert "no such device" in tests[1].why
    assert "assert 1 == 2" in tests[2].why
    assert "assert 1 == 2" in capsys.readouterr().out  # pytest's own report of it


@pytest.mark.parametrize(("failing", "status"), [(False, 0), (True, 1)])
def test_tests_and_bars_are_reported_together(gpu_check, tmp_path, monkeypatch, capsys, failing, status):
    tests = [gpu_check.Test("test_cuda::a", "passed", 1.5), gpu_check.Test("test_cuda::b", "skipped", 0.0, "no MPS")]
    tests += [gpu_check.Test("test_executors::c", "failed", 2.0, "off by 1")] if failing else []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "run_tests", lambda *words: tests)
    monkeypatch.setattr(gpu_check.gpu, "measure", lambda blocks: [Measurement("speed", 9.0, "x", at_least=10)])
    monkeypatch.setattr(gpu_check.devices, "choose", lambda name: torch.device("cpu"))
    assert gpu_check.main(["--out", str(tmp_path)]) == status
    said = capsys.readouterr().out
    assert "| test_cuda | 1 | 0 | 1 | 2 |" in said
    assert "skipped: test_cuda::b: no MPS" in said
    assert ("failed: test_executors::c: off by 1" in said) == failing
    assert "| speed | 9 x | at least 10 | short |" in said
    written = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [test["outcome"] for test in written["tests"]] == ["passed", "skipped", *["failed"] * failing]
    assert written["rows"][0]["verdict"] == "short"
    assert "commit" in written
