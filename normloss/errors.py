"""The ways a command ends other than well, each with its exit status and one line for the user."""

import errno
import traceback
from collections.abc import Callable

from normloss import output

DEFECT = "an internal error of normloss: please report it with the lines above"


def named(error: BaseException) -> str:
    """Return the type and first line of another library's error, without the lines of advice that torch adds."""
    lines = str(error).strip().splitlines()
    what = " ".join(lines[: 2 if lines[0].endswith(":") else 1]) if lines else ""  # "backend='inductor' raised:"
    return f"{type(error).__name__}: {what}" if what else type(error).__name__


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class Stop(Exception):
    """A command that ends for a reason the user can act on; str() is the one line they get."""

    status = 1


class UserError(Stop):
    """Wrong configuration or missing data: nothing was started."""

    status = 2


class Diverged(Stop):
    """The cross entropy is no longer finite."""

    status = 3


class Locked(Stop):
    """Another process is training the run."""

    status = 4


class Interrupted(Stop):
    """Stopped by a signal or a full disk, saved as far as possible: rerun the command to resume."""

    status = 75


def exit_status(work: Callable[[], int | None], output_closed: int = Interrupted.status) -> int:
    """Do the work of a process; return its exit status, after one line if it ended early, or a traceback.

    output_closed: the status if nobody reads its output any more.
    """
    try:
        return work() or 0
    except Stop as stop:
        line, status = str(stop), stop.status
    except BrokenPipeError:
        output.discard_stdout()
        if not output_closed:
            return 0
        line, status = "its output was closed; rerun the command to resume", output_closed
    except Exception as error:  # noqa: BLE001  printed whole
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            line, status = f"{error.strerror}; free some space and rerun the command to resume", Interrupted.status
        else:
            traceback.print_exc()
            line, status = DEFECT, 1
    output.report(line)  # here the exception is gone, and with it the run's objects and workers
    return status
