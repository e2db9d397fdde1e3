"""What a run imports before its first step, and how benchmarks/start.py reckons what that costs."""

import subprocess
import sys

import pytest

from benchmarks import start
from tests.conftest import ROOT

HEAVY = {"torchvision", "torchcodec", "sklearn", "scipy", "pandas", "matplotlib", "wandb", "nbclient", "IPython"}


def test_a_run_imports_nothing_that_it_does_not_use():
    code = (
        "import sys, torch, torch._dynamo, train\n"
        "from normloss.sweeps import processes\n"
        "processes.preload()\n"
        "print(*{name.split('.')[0] for name in sys.modules} - {'torch'})\n"
    )
    asked = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(asked.stdout.split())


def test_the_start_is_told_without_the_reading_of_images(monkeypatch):
    monkeypatch.setattr(start, "write_images", lambda file: file)
    torch_alone = iter([5.0, 4.0, 9.0, 4.5, 5.5, 5.0, 6.0])
    monkeypatch.setattr(start, "cpu_seconds", lambda command: next(torch_alone))
    monkeypatch.setattr(start, "run_seconds", lambda words, store: 7.0 if "dataset=digits" in words else 9.0)
    monkeypatch.setattr(start, "reading_seconds", lambda words: 1.0 if "dataset=digits" in words else 2.5)
    monkeypatch.setattr(start, "member_seconds", lambda words, store: [0.4, 0.6, 0.5])
    digits, cifar, alone, member = start.measure()
    assert (alone.value, member.value) == (5.0, 0.5)
    assert (digits.value, cifar.value) == (pytest.approx(6 / 5), pytest.approx(6.5 / 5))
    assert (digits.at_most, digits.verdict, cifar.verdict) == (1.45, "pass", "pass")


def test_a_command_that_fails_is_told_with_its_output():
    with pytest.raises(RuntimeError, match="status 3:\nno luck"):
        start.cpu_seconds([sys.executable, "-c", "import sys; print('no luck'); sys.exit(3)"])
