"""Shared by the tests: one thread, and configs composed as the command line composes them."""

import importlib.util
import os
import signal
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # two processes with two spinning threads each are slower than one thread

import torch
from hydra import compose, initialize_config_dir

from normloss.config import CONFIGS, Config, check
from normloss.errors import UserError
from normloss.training.device import set_tf32

torch.set_num_threads(1)
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


ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def config():
    """config("dataset=digits", "model=resnet8") -> Config"""

    def make(*overrides: str) -> Config:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return check(compose("config", list(overrides)))

    return make


@pytest.fixture(scope="session")
def load_script():
    """load_script("compare") -> scripts/compare.py as a module"""

    def load(name: str):
        spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
