"""Shared by the tests: one thread, and configs composed as the command line composes them."""

import importlib.util
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # two processes with two spinning threads each are slower than one thread

import torch
from hydra import compose, initialize_config_dir

from normloss.config import CONFIGS, Config, check
from normloss.errors import UserError
from normloss.runs.records import RunRecord, load_run
from normloss.signals import StopRequest
from normloss.training.device import set_tf32
from train import train

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)
if not torch.cuda.is_available():  # autograd that starts once fake CUDA tensors are there cannot be forked
    torch.ones((), requires_grad=True).backward()
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored, as runs then have it, and hangups are tested


def cuda(test):
    """Marks a test that runs where there is a CUDA device: pytest -m cuda."""
    return pytest.mark.cuda(pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")(test))


def refused(call, *arguments) -> str:
    """The one line with which a call refuses what it was given."""
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def surroundings(**variables: str) -> dict[str, str]:
    """Return this process's environment without keys and settings of whoever tests."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "NORMLOSS_"))}
    return own | {"PYTHONPATH": str(ROOT)} | variables


def ran(*words: object, status: int = 0, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """python WORDS, as it ended: with this status, and no traceback."""
    own = surroundings(**environment)
    ended = subprocess.run([sys.executable, *words], cwd=cwd, env=own, capture_output=True, text=True)
    assert ended.returncode == status and "Traceback" not in ended.stderr, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended


PRESETS = sorted(path.stem for path in (CONFIGS / "reg").glob("*.yaml"))


@pytest.fixture
def ieee(monkeypatch):
    """float32 computed in float32 on a GPU; what the test and its runs set for the whole process is taken back."""
    monkeypatch.setitem(os.environ, "CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, at the first matrix product
    before, threads = torch.backends.cudnn.benchmark, torch.get_num_threads()
    set_tf32(False)
    yield
    set_tf32(False)
    torch.backends.cudnn.benchmark = before
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def config():
    """config("dataset=digits", "model=resnet8") -> Config"""

    def make(*overrides: str) -> Config:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return check(compose("config", list(overrides)))

    return make


@contextmanager
def as_nobody():
    """As a user who owns nothing; only root can be another."""
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture(scope="session")
def trained(config):
    """trained(store, "reg=wd") -> the run on the digits as it ended"""

    def run(store: Path, *overrides: str, stop: StopRequest | None = None) -> RunRecord:
        here = ["device=cpu", "threads=1", "wandb.mode=disabled", "train.milestones=[]", f"store={store}"]
        cfg = config("dataset=digits", "model=resnet8", *here, *overrides)
        train(cfg, stop)
        return load_run(store / cfg.id)

    return run


@pytest.fixture(scope="session")
def load_script():
    """load_script("compare") -> scripts/compare.py as a module"""

    def load(name: str):
        spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
