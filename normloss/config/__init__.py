# ruff: noqa: F401  what other packages import from here
"""The typed configuration of a run: its schema, its identity, and checks across keys.

Imports pydantic, OmegaConf, numpy and normloss.errors, never torch, so that --help and plans answer at once.
Start reading at schema.py: every key once, with unit and source; identity.py says which of them make a run's id.
"""

from normloss.config.checks import check, checked, did_you_mean, is_gone, read_stored, section_keys
from normloss.config.identity import RETIRED, TRAINED, run_id, trained_config
from normloss.config.labels import CONFIGS, reg_files
from normloss.config.schema import (
    Cifar10,
    Cifar100,
    Config,
    Digits,
    Folder,
    ImageNet,
    Model,
    Reg,
    TensorImages,
    Train,
    default_model,
    steps_per_epoch,
)
