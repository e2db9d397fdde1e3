"""Checkpoints: what torch.save writes, with the SHA-256 of it as the last 32 bytes."""

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

from normloss.runs.files import Damaged, read_bytes

DIGEST_BYTES = 32


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
        state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:  # whole, but none of ours
        raise Damaged(file, f"is no checkpoint ({error})") from None
    if not isinstance(state, dict):
        raise Damaged(file, "is no checkpoint")
    return state
