"""Checkpoints: what torch.save writes, with the SHA-256 of it as the last 32 bytes.

A finished run's may be stripped to its weights: what only resuming needs goes, which is half of it and more.
"""

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from normloss.runs.files import Damaged, read_bytes, write_whole
from normloss.runs.records import is_done

DIGEST_BYTES = 32
KEPT = ("id", "model", "reg", "epoch", "step")  # of a finished run's


def pack(state: dict[str, Any]) -> memoryview:
    """Return the content of a checkpoint file."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    with buffer.getbuffer() as content:
        digest = hashlib.sha256(content).digest()
    buffer.write(digest)  # torch.load does not mind what follows the archive
    return buffer.getbuffer()


def read_whole(file: Path) -> bytes:
    """Return the content of a checkpoint file; raises Damaged unless its checksum fits."""
    content = read_bytes(file)
    if hashlib.sha256(memoryview(content)[:-DIGEST_BYTES]).digest() != content[-DIGEST_BYTES:]:
        raise Damaged(file, "is damaged (its checksum does not fit)")
    return content


def load(file: Path, device: Any = "cpu") -> dict[str, Any]:
    """Return what a checkpoint holds, its tensors on `device`; raises Damaged where it is none. Runs no code of it."""
    import torch

    content = read_whole(file)
    try:
        return torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:  # whole, but none of ours
        raise Damaged(file, f"is no checkpoint ({error})") from None


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
            state = load(file)
            weights = pack({key: state[key] for key in KEPT if key in state})
            freed = max(0, file.stat().st_size - len(weights))
            if freed and not dry:
                write_whole(file, weights)
    except (Timeout, Damaged):
        return 0
    return freed
