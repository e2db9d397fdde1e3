"""Parses Hydra's own options: the one file that leans on hydra._internal.

tests/test_composing.py fails when a version of Hydra breaks it. Imported late, since Hydra is slow to import.
"""

from argparse import Namespace
from collections.abc import Sequence
from typing import NoReturn

from normloss.errors import UserError


def parse(words: Sequence[str]) -> Namespace:
    """Return the options of a command line, such as `multirun` and `cfg`, and its key=value words as `overrides`.

    Raises UserError with argparse's message.
    """
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]  # argparse would print a usage of 12 lines and exit
    options = parser.parse_intermixed_args(words)
    if options.experimental_rerun:
        raise UserError("--experimental-rerun: is not taken, since it reads a pickle, which can run anything")
    return options


def _refuse(message: str) -> NoReturn:
    raise UserError(message.removeprefix("argument "))
