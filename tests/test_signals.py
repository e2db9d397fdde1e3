"""A signal stays a signal, whatever a library on the way makes of the exception that it raised."""

import os
import signal

import pytest

from normloss.errors import Interrupted, UserError
from normloss.signals import Signalled, StopRequest, raised


def import_extension(number):
    """An import that a signal meets: compiled modules raise an ImportError of their own, Python a RuntimeError."""
    try:
        if number is not None:
            os.kill(os.getpid(), number)
    except BaseException as error:
        raise ImportError("numpy failed to import") from error
    raise ImportError("no such module")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_an_error_made_of_a_signal_is_the_signal(number):
    line = f"^stopped by {number.name}; start it again to go on$"
    with pytest.raises(Interrupted, match=line), StopRequest().installed():
        import_extension(number)
    with pytest.raises(Signalled, match=f"^{number.name}$"), raised():
        import_extension(number)


@pytest.mark.parametrize("block", [raised, lambda: StopRequest().installed()])
def test_an_error_without_a_signal_stays_what_it_is(block):
    with pytest.raises(ImportError, match="no such module"), block():
        import_extension(None)
    with pytest.raises(UserError, match="reg: no"), block():
        raise UserError("reg: no")


def test_an_error_after_a_signal_that_is_only_noted_stays_what_it_is():
    error = pytest.raises(ImportError, match="no such module")
    with error, StopRequest().installed() as stop, stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        import_extension(None)
