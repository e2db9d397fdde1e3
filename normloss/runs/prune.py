"""Strips a finished run's checkpoint to its weights: what only resuming needs goes, which is half of it and more."""

from pathlib import Path

from filelock import FileLock, Timeout

from normloss.runs import checkpoint
from normloss.runs.files import Damaged, write_whole
from normloss.runs.records import is_done

KEPT = ("id", "model", "reg", "epoch", "step")  # of a checkpoint


def prune(path: Path, dry: bool = False) -> int:
    """Return how many bytes the checkpoints of the finished run in `path` take less than before; dry: would take.

    A run that is in use, not finished, or whose last.pt is missing or damaged stays as it is: 0 bytes. Everything else
    in the folder stays too.
    """
    if not is_done(path):
        return 0
    try:
        with FileLock(path / ".lock", timeout=0):
            state = checkpoint.load(path / "last.pt")
            weights = checkpoint.pack({key: state[key] for key in KEPT if key in state})
            useless = [file for file in (path / "last.pt.prev", *path.glob("*.corrupt")) if file.is_file()]
            freed = sum(file.stat().st_size for file in useless)  # *.corrupt: of version 0.2
            less = max(0, (path / "last.pt").stat().st_size - len(weights))
            if not dry:
                if less:
                    write_whole(path / "last.pt", weights)
                for file in useless:
                    file.unlink()
    except (Timeout, Damaged):
        return 0
    return freed + less
