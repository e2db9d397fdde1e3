"""Members of a sweep share out the GPUs, and the sweep itself never asks CUDA. GPUs are stood in for."""

import os
import sys
from types import SimpleNamespace

import pytest

from normloss.sweeps import members, processes
from normloss.sweeps.composing import plan
from normloss.training import gpus

LISTED = "GPU 0: NVIDIA H100 (UUID: GPU-1)\n  MIG 1g.10gb Device 0: (UUID: MIG-7)\nGPU 1: NVIDIA H100 (UUID: GPU-2)\n"


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """nvidia_smi(output, status) -> the one that is found."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def answers(output: str, status: int = 0) -> None:
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!{sys.executable}\nimport sys\nsys.stdout.write({output!r})\nsys.exit({status})\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return answers


@pytest.mark.parametrize(
    ("given", "there"), [("", []), ("0", ["0"]), ("2, 3", ["2", "3"]), ("MIG-7,GPU-2", ["MIG-7", "GPU-2"])]
)
def test_what_the_environment_names_counts(monkeypatch, given, there):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert gpus.visible() == there


@pytest.mark.parametrize(("said", "status", "there"), [(LISTED, 0, ["0", "1"]), ("NVIDIA-SMI has failed", 9, [])])
def test_otherwise_the_driver_is_asked(nvidia_smi, said, status, there):
    nvidia_smi(said, status)
    assert gpus.visible() == there


@pytest.fixture
def started(monkeypatch):
    """Of each member in order: its GPU and how many trained beside it; each ends when another is to start."""
    told, alive = [], []

    class Ended(SimpleNamespace):
        ident = 0

    def start(work, environment):
        process = Ended(exitcode=None)
        alive.append(process)
        told.append((environment.get("CUDA_VISIBLE_DEVICES"), sum(one.exitcode is None for one in alive)))
        return process

    def sleep(seconds):
        next(one for one in alive if one.exitcode is None).exitcode = 4

    monkeypatch.setattr(processes, "start", start)
    monkeypatch.setattr(processes, "preload", lambda store: None)
    monkeypatch.setattr(members.time, "sleep", sleep)
    return told


@pytest.mark.parametrize(
    ("visible", "jobs", "words", "expected"),
    [
        ("4,7", None, [], [("4", 1), ("7", 2), ("4", 2), ("7", 2)]),
        ("4,7", 4, [], [("4", 1), ("7", 2), ("4", 3), ("7", 4)]),
        ("4,7", None, ["device=cpu"], [(None, 1)] * 4),
        ("4,7", None, ["device=cuda:1"], [(None, 1)] * 4),
        ("", None, [], [(None, 1)] * 4),
    ],
)
def test_a_sweep_shares_out_the_gpus(started, monkeypatch, tmp_path, visible, jobs, words, expected):
    """One member on each; with hydra.launcher.jobs as many as that; for another device one at a time."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    runs = plan(["-m", "dataset=digits", "model=resnet8", "seed=0,1,2,3", f"store={tmp_path}", *words])
    members.train_here([lambda: runs], jobs)
    assert started == expected
