"""Shared by the tests: one thread, and configs composed as the command line composes them."""

import os
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # two processes with two spinning threads each are slower than one thread

import torch
from hydra import compose, initialize_config_dir

from normloss.config import CONFIGS, Config, check

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def config():
    """config("dataset=digits", "model=resnet8") -> Config"""

    def make(*overrides: str) -> Config:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return check(compose("config", list(overrides)))

    return make
