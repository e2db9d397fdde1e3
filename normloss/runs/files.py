"""Files written whole or not at all, and read back."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def read_json(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.exists() else None


def write_json(file: Path, value: dict[str, Any]) -> None:
    write_whole(file, (json.dumps(value, indent=1) + "\n").encode())


def write_whole(file: Path, content: bytes | memoryview, keep: Path | None = None) -> None:
    """Replace `file` at once: partial file, fsync, rename, fsync of the folder. keep: where the old one goes."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        with open(partial, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    if keep is not None and file.exists():
        os.replace(file, keep)
    os.replace(partial, file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def find_damage(file: Path) -> str | None:
    """What is wrong with a checkpoint, None if nothing; by its last 32 bytes, the SHA-256 of the rest."""
    try:
        content = file.read_bytes()
    except OSError as error:
        return str(error)
    whole = hashlib.sha256(memoryview(content)[:-32]).digest() == content[-32:]
    return None if whole else "its checksum does not fit"
