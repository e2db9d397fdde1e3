"""Runs a command with the project's exit statuses: a user's mistake is one line, never a traceback."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from normloss.errors import UserError, exit_status
from normloss.runs.files import not_writable
from normloss.runs.records import RunWarning
from normloss.sweeps.refusals import explain


def script(work: Callable[[], None]) -> int:
    """Do a script's work; return its exit status, 0 also if whoever reads its output, head for instance, has enough."""

    def done() -> None:
        try:
            with print_warnings():
                work()
            sys.stdout.flush()
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            raise UserError(explain(error)) from None

    return exit_status(done, output_closed=0)


@contextmanager
def print_warnings() -> Iterator[None]:
    """Print a line for each run that is left out within this block, once, at its end."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RunWarning)
        try:
            yield
        finally:
            sys.stdout.flush()
            for line in dict.fromkeys(str(warning.message) for warning in caught if warning.category is RunWarning):
                print(f"normloss: warning: {line}", file=sys.stderr, flush=True)
    for warning in caught:
        if warning.category is not RunWarning:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@contextmanager
def written(name: str, folder: Path) -> Iterator[None]:
    """Raise a UserError if files of `folder`, which was given as `name`, cannot be written within this block."""
    try:
        yield
    except OSError as error:
        raise not_writable(name, folder, error) from None
