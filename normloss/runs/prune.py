"""Strips a finished run's checkpoint to its weights: what only resuming needs goes, which is half of it and more."""

from pathlib import Path

from filelock import FileLock, Timeout

from normloss.runs import checkpoint
from normloss.runs.files import Damaged, write_whole
from normloss.runs.records import is_done

KEPT = ("id", "model", "reg", "epoch", "step")  # of a checkpoint


def prune(path: Path, dry: bool = False) -> int:
    """Return how many bytes the checkpoint of the finished run in `path` takes less than before; dry: would take.

    A run that is in use, not finished, or whose last.pt is missing or damaged stays as it is: 0 bytes. Everything else
    in the folder stays too.
    """
    if not is_done(path):
        return 0
    file = path / "last.pt"
    try:
        with FileLock(path / ".lock", timeout=0):
            state = checkpoint.load(file)
            weights = checkpoint.pack({key: state[key] for key in KEPT if key in state})
            freed = max(0, file.stat().st_size - len(weights))
            if freed and not dry:
                write_whole(file, weights)
    except (Timeout, Damaged):
        return 0
    return freed
