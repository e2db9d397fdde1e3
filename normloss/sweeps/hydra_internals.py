"""What Hydra has no public way to do: the one file that leans on hydra._internal.

tests/test_composing.py tells when a version of Hydra breaks it. Imported late, since Hydra is slow to import.
"""

from argparse import ArgumentParser
from typing import Any


def arguments_parser() -> ArgumentParser:
    """The parser of Hydra's own flags, such as --config-path and --multirun."""
    from hydra._internal.utils import get_args_parser

    return get_args_parser()


def split_sweep(overrides: list[Any]) -> list[list[str]]:
    """The words of each member of a sweep, of its parsed overrides, as Hydra's basic sweeper splits them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    (members,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    return [list(member) for member in members]
