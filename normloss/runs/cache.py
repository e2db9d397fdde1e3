"""What was found in the run folders of a large store, kept in one file beside them, so that nothing is parsed twice.

An entry counts only while every file of its run has the times, size and inode that it had when it was read, and only
for the code that wrote it. A cache that is gone, damaged, old or cannot be written costs time, nothing else.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from normloss import config
from normloss.runs import contract, files
from normloss.runs.files import Damaged, read_regular

NAME = ".cache"
FROM_RUNS = 200  # a smaller store is read as fast without
MOST_BYTES = 2**30
SETTLED_SECONDS = 2.0  # a file younger than this may change again within the resolution of its time

Stats = dict[str, list[int]]  # file name -> [mtime_ns, ctime_ns, size, inode]


def stat_files(path: str) -> Stats:
    """The files of the contract that a folder has."""
    with os.scandir(path) as entries:
        found = [entry for entry in entries if entry.name in contract.MOST_BYTES]
        stats = {entry.name: entry.stat(follow_symlinks=False) for entry in found}
    return {name: [fact.st_mtime_ns, fact.st_ctime_ns, fact.st_size, fact.st_ino] for name, fact in stats.items()}


class Cache:
    """Of one store: `get` what is known of a run whose files are as in `stats`, `put` what was found; then `save`."""

    def __init__(self, store: Path, runs: int) -> None:
        self.file = store / NAME
        self.wanted = runs >= FROM_RUNS
        self.entries: dict[str, dict[str, Any]] = self._load() if self.wanted else {}
        self.changed = 0
        self.began = time.time_ns()

    def get(self, name: str, stats: Stats) -> dict[str, Any] | None:
        entry = self.entries.get(name)
        return entry["found"] if entry and entry["stats"] == stats else None

    def put(self, name: str, stats: Stats, found: dict[str, Any]) -> None:
        if not self.wanted:
            return
        newest = max((max(fact[:2]) for fact in stats.values()), default=0)
        if self.began - newest > SETTLED_SECONDS * 1e9:
            self.entries[name] = {"stats": stats, "found": found}
            self.changed += 1

    def save(self, names: set[str]) -> None:
        """Keep the entries of the runs in `names`, where enough of them are new to be worth it."""
        if self.changed <= len(self.entries) // 100:
            return
        entries = {name: entry for name, entry in self.entries.items() if name in names}
        body = json.dumps({"code": _code(), "entries": entries}, separators=(",", ":")).encode()
        partial = self.file.with_name(f"{NAME}.{os.getpid()}.partial")
        try:
            partial.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
            os.replace(partial, self.file)
        except OSError:  # a store that can only be read, or is full
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def _load(self) -> dict[str, dict[str, Any]]:
        try:
            content = read_regular(self.file, MOST_BYTES)
        except Damaged:
            return {}
        digest, _, body = content.partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            return {}
        kept = json.loads(body)
        return kept["entries"] if kept["code"] == _code() else {}


def _code() -> str:
    """Of what decides whether a folder is a run: other code may judge otherwise."""
    here = [Path(contract.__file__), Path(files.__file__), *sorted(Path(config.__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in here)).hexdigest()
