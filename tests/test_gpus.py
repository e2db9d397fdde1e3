"""Members of a sweep share out the GPUs, and the sweep itself never asks CUDA. GPUs are stood in for."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from normloss.sweeps import members, processes
from normloss.sweeps.composing import plan
from normloss.training import gpus
from tests.conftest import ROOT

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


def test_otherwise_the_driver_is_asked(nvidia_smi):
    nvidia_smi(LISTED)
    assert gpus.visible() == ["0", "1"]


def test_a_driver_that_fails_has_no_gpus(nvidia_smi):
    nvidia_smi("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", 9)
    assert gpus.visible() == []


def test_a_member_gets_the_gpu_that_fewest_have():
    assert gpus.least_used(["0", "1"], []) == "0"
    assert gpus.least_used(["0", "1"], ["0"]) == "1"
    assert gpus.least_used(["0", "1"], ["0", "1", "0"]) == "1"
    assert gpus.least_used(["0"], []) is None  # the one that it sees anyway


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
    monkeypatch.setattr(processes, "preload", lambda: None)
    monkeypatch.setattr(members.time, "sleep", sleep)
    return told


def sweep(tmp_path, *words):
    runs = plan(["-m", "dataset=digits", "model=resnet8", f"store={tmp_path}", *words])
    return [lambda: runs]


def test_a_sweep_trains_one_member_on_each_gpu(started, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    members.train_here(sweep(tmp_path, "seed=0,1,2,3"), None)
    assert started == [("4", 1), ("7", 2), ("4", 2), ("7", 2)]


def test_a_number_of_jobs_shares_them_out(started, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    members.train_here(sweep(tmp_path, "seed=0,1,2,3"), 4)
    assert started == [("4", 1), ("7", 2), ("4", 3), ("7", 4)]


@pytest.mark.parametrize("words", [["device=cpu"], ["device=cuda:1"]])
def test_members_for_another_device_are_left_alone(started, monkeypatch, tmp_path, capsys, words):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    members.train_here(sweep(tmp_path, "seed=0,1", *words), None)
    assert started == [(None, 1), (None, 1)]


def test_without_gpus_one_member_trains_at_a_time(started, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    members.train_here(sweep(tmp_path, "seed=0,1"), None)
    assert started == [(None, 1), (None, 1)]


@pytest.mark.parametrize("jobs", ["0", "-1"])
@pytest.mark.parametrize("words", [["-m", "seed=0,1"], ["experiment=demo"], ["compare=nl,wd", "dataset.val=300"]])
def test_a_number_of_jobs_is_at_least_one_however_a_sweep_is_asked_for(tmp_path, words, jobs):
    asked = [*words, "dataset=digits", "model=resnet8", f"hydra.launcher.jobs={jobs}", f"store={tmp_path}"]
    ran = subprocess.run([sys.executable, str(ROOT / "train.py"), *asked], capture_output=True, text=True)
    line = f"normloss: hydra.launcher.jobs: must be a whole number of at least 1, got {jobs}\n"
    assert (ran.returncode, ran.stderr.replace("'", "")) == (2, line)


def test_asking_for_gpus_does_not_touch_cuda():
    code = "import sys; from normloss.training import gpus; gpus.visible(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
