"""Files written whole or not at all; and read within bounds, since a store may hold somebody else's."""

import errno
import hashlib
import json
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import yaml

DEEPEST = 20  # levels of nesting in a YAML file; a config has four


class Damaged(Exception):
    """A file that cannot be what it should be; str() says why, in words that follow the file's name."""


# reading -----------------------------------------------------------------------------------------


def open_regular(file: Path | str, most_bytes: int, folder: int | None = None) -> BinaryIO:
    """A regular file to read, never through a symbolic link and never a device or a pipe.

    folder: the descriptor of the folder that `file` is a name in. Raises Damaged where it is not there, is something
    else, or is larger than `most_bytes`.
    """
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to must not wait
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        opened = os.fdopen(os.open(file, flags, dir_fd=folder), "rb")
    except FileNotFoundError:
        raise Damaged("is gone") from None
    except OSError as error:
        reason = "a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise Damaged(f"cannot be read ({reason})") from None
    facts = os.fstat(opened.fileno())
    if stat.S_ISREG(facts.st_mode) and facts.st_size <= most_bytes:
        return opened
    opened.close()
    if stat.S_ISREG(facts.st_mode):
        raise Damaged(f"is larger than such a file can be ({facts.st_size} bytes)")
    raise Damaged("is not a regular file")


def read_regular(file: Path, most_bytes: int) -> bytes:
    """The content of a regular file; raises Damaged, see open_regular."""
    with open_regular(file, most_bytes) as opened:
        try:
            return opened.read(most_bytes)
        except OSError as error:
            raise Damaged(f"cannot be read ({error.strerror})") from None


def parse_json(content: bytes) -> dict[str, Any]:
    """A JSON object; raises Damaged for anything else."""
    if not content.strip():
        raise Damaged("is empty")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or no UTF-8
        raise Damaged(f"is damaged ({_one_line(error)})") from None
    if not isinstance(value, dict):
        raise Damaged("is damaged (no JSON object)")
    return value


def parse_yaml(content: bytes) -> dict[str, Any]:
    """A YAML mapping of plain values, without tags, anchors or deep nesting; raises Damaged for anything else."""
    if not content.strip():
        raise Damaged("is empty")
    try:
        _refuse_what_a_config_never_has(content)
        value = yaml.load(content, Loader=SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Damaged(f"is damaged ({_one_line(error)})") from None
    if not isinstance(value, dict) or not _is_plain(value):
        raise Damaged("is damaged (no mapping of plain values)")
    return value


SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast


def _refuse_what_a_config_never_has(content: bytes) -> None:
    if all(map(PLAIN_LINE.fullmatch, content.splitlines())):
        return  # as our own files are: no anchor, no tag, and no deeper than it is indented
    depth = 0
    for event in yaml.parse(content, Loader=SafeLoader):  # events come one after the other: no recursion, no expansion
        if getattr(event, "anchor", None) is not None:
            raise Damaged("is damaged (YAML anchors are not read)")
        if getattr(event, "tag", None) is not None:
            raise Damaged("is damaged (YAML tags are not read)")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise Damaged(f"is damaged (nested more than {DEEPEST} levels deep)")


PLAIN_LINE = re.compile(rb" {0,8}(- [\w.+/-]+|\w+:( ([\w.+/-]+|\[\]))?)")  # "key:", "key: word", "key: []", "- word"


def _is_plain(value: Any) -> bool:
    """Whether JSON has it, which a date of YAML's is not."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return all(map(_is_plain, value)) if isinstance(value, list) else isinstance(value, str | int | float | None)


def printable(text: str, most: int = 300) -> str:
    """A stranger's text as one line that no terminal takes for a command."""
    shown = "".join(letter if letter.isprintable() else " " if letter.isspace() else "?" for letter in text[: 4 * most])
    return " ".join(shown.split())[:most]


def _one_line(error: Exception) -> str:
    return printable(str(error), 200)


def read_json(file: Path) -> dict[str, Any] | None:
    """The JSON object in a file of our own; None where it is gone or damaged: see contract.py for which of the two."""
    try:
        return parse_json(read_regular(file, 2**24))
    except Damaged:
        return None


# writing -----------------------------------------------------------------------------------------


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
        if keep is not None and file.exists():
            os.replace(file, keep)
        os.replace(partial, file)
    except BaseException:  # a signal too
        with suppress(OSError):  # a folder that can only be read
            partial.unlink()
        raise
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a crash of the machine."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def find_damage(file: Path) -> str | None:
    """What is wrong with a checkpoint, None if nothing; by its last 32 bytes, the SHA-256 of the rest."""
    try:
        content = file.read_bytes()
    except OSError as error:
        return str(error)
    whole = hashlib.sha256(memoryview(content)[:-32]).digest() == content[-32:]
    return None if whole else "its checksum does not fit"
