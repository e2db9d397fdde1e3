"""The ways a run ends other than well, each with its exit status and one line for the user."""

DEFECT = "a defect of normloss: please report it with the lines above"


def named(error: BaseException) -> str:
    """What another library raised: its type and first line, without the lines of advice that torch adds."""
    lines = str(error).strip().splitlines()
    what = " ".join(lines[: 2 if lines[0].endswith(":") else 1]) if lines else ""  # "backend='inductor' raised:"
    return f"{type(error).__name__}: {what}" if what else type(error).__name__


class Stop(Exception):
    """A run that ends for a reason the user can act on; str() is the one line they get."""

    status = 1


class UserError(Stop):
    """Wrong configuration or missing data: nothing was started."""

    status = 2


class Diverged(Stop):
    """The cross entropy is no longer finite."""

    status = 3


class Locked(Stop):
    """Another process has the run."""

    status = 4


class Interrupted(Stop):
    """Stopped by a signal or a full disk, saved as far as possible: start it again to go on."""

    status = 75
