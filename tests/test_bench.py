"""scripts/bench.py and gpu_check.py as far as a CPU goes: what they write."""

import json
import subprocess

import pytest


@pytest.mark.slow
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


def test_a_window_packs_its_store_in_parts_and_goes_on_with_them(load_script, monkeypatch, tmp_path):
    check = load_script("gpu_check")
    monkeypatch.setattr(check, "TESTS", ())
    monkeypatch.setattr(check, "measure", lambda words, seconds: None)
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **options:
                        trained.append(command) if "train.py" in command else run(command, **options))  # fmt: skip
    trained, large = [], bytes(range(256)) * 70_000  # 18 MB
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "last.pt").write_bytes(large)
    for store in ("first", "second"):
        words = ["--window=2", "--device=cpu", f"--pack={tmp_path / 'packed'}", f"--store={tmp_path / store}"]
        assert check.main(words) == 0
        parts = sorted((tmp_path / "packed").iterdir())
        assert [part.name for part in parts] == ["window.tar.000", "window.tar.001"]
        assert all(part.stat().st_size <= 15_000_000 for part in parts)
    assert (tmp_path / "second" / "last.pt").read_bytes() == large
    assert [command[2] for command in trained] == ["experiment=demo"] * 2
    budgets = [float(command[3].removeprefix("budget_minutes=")) for command in trained]
    assert all(0.8 < minutes <= 1 for minutes in budgets)  # a minute is for packing
