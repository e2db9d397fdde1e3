"""Files written whole or not at all, and read without running code or following a symbolic link."""

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import yaml

from normloss.errors import UserError

SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast


class Damaged(UserError):
    """A file that is missing or cannot be what it should be; str() is its path and why, in one line."""

    def __init__(self, file: Path | str, why: str) -> None:
        super().__init__(one_line(f"{file} {why}"))


def one_line(text: str) -> str:
    """Return a text as one line without control characters, which a terminal might take for commands."""
    shown = "".join(letter if letter.isprintable() else " " if letter.isspace() else "?" for letter in text)
    return " ".join(shown.split())[:400]


def not_writable(key: str, folder: Path, error: OSError) -> UserError:
    """Return the error for a folder, given as `key`, that cannot be written."""
    return UserError(f"{key}: must be a folder that can be written, got {folder} ({error.strerror or error})")


# reading -----------------------------------------------------------------------------------------


@contextmanager
def opened(file: Path | str) -> Iterator[BinaryIO]:
    """Yield a file to read that is no symbolic link; raises Damaged where it cannot be opened or read."""
    try:
        with open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW)) as content:
            yield content
    except FileNotFoundError:
        raise Damaged(file, "is gone") from None
    except OSError as error:
        why = "it is a symbolic link" if os.path.islink(file) else error.strerror or error
        raise Damaged(file, f"cannot be read ({why})") from None


def read_bytes(file: Path | str) -> bytes:
    """Return the content of a file that is no symbolic link; raises Damaged where it cannot be read."""
    with opened(file) as content:
        return content.read()


def load_json(file: Path | str) -> dict[str, Any]:
    """Return the JSON object in a file; raises Damaged for anything else."""
    return _mapping(file, json.loads)


def load_yaml(file: Path | str) -> dict[str, Any]:
    """Return the YAML mapping of plain values in a file; raises Damaged for anything else."""
    return _mapping(file, lambda content: yaml.load(content, SafeLoader))


def _mapping(file: Path | str, parse: Callable[[bytes], Any]) -> dict[str, Any]:
    content = read_bytes(file)
    try:
        value = parse(content)
    except (ValueError, yaml.YAMLError, RecursionError) as error:  # ValueError: no JSON, or no UTF-8
        raise Damaged(file, f"is damaged ({error})" if content else "is empty") from None
    if not isinstance(value, dict):
        raise Damaged(file, "is damaged (it holds no keys)" if content else "is empty")
    return value


def load_arrays(file: Path, keys: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file, or those of some keys; never unpickled. Raises Damaged for anything else."""
    with opened(file) as content:
        try:
            with np.load(content, allow_pickle=False) as arrays:
                return {key: arrays[key] for key in keys or arrays.files}
        except Exception as error:  # noqa: BLE001  a damaged file fails in any way
            raise Damaged(file, f"is damaged ({error})") from None


def read_json(file: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None where the file is missing or damaged."""
    try:
        return load_json(file)
    except Damaged:
        return None


# writing -----------------------------------------------------------------------------------------


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    write_whole(file, (json.dumps(value, indent=1) + "\n").encode())


def write_arrays(file: Path, arrays: dict[str, Any], save: Callable[..., None] = np.savez) -> None:
    """Write an .npz file, whole or not at all. save: np.savez or np.savez_compressed."""
    buffer = io.BytesIO()
    save(buffer, **arrays)
    write_whole(file, buffer.getbuffer())


def write_whole(file: Path, content: bytes | memoryview, keep: Path | None = None) -> None:
    """Replace `file` at once: partial file, fsync, rename, fsync of the folder. keep: where the old one goes.

    A kill leaves the old file, and perhaps the partial one: open_run removes it.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")  # its own: others may write the same file
    try:
        with open(partial, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        if keep is not None and file.exists():
            os.replace(file, keep)
        os.replace(partial, file)
    except OSError:  # a full disk: make room again
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # its names survive a crash of the machine
    finally:
        os.close(folder)
