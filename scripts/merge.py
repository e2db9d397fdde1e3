"""Merges other stores into one: imports new runs, and runs that were trained further elsewhere.

python scripts/merge.py STORE ... [--store results/runs]

A run is a plain folder: copy a store from another machine with cp, rsync or tar, then merge it. A run that both stores
hold is replaced if the other's epochs continue ours; two finished copies must agree in their final metrics. Any other
pair is reported and left unchanged (exit status 2). A run that is being trained is skipped (exit status 4).
"""

import sys
from pathlib import Path

import checkout  # noqa: F401  before the slow imports

from normloss.cli import entry, start
from normloss.errors import Locked, UserError
from normloss.runs.merge import merge
from normloss.runs.records import existing_folder


def main(arguments: list[str]) -> int:
    parser = start.Parser(__doc__)
    parser.add_argument("stores", nargs="+", type=Path, metavar="STORE", help="folders of runs to import")
    parser.add_argument("--store", type=Path, default=Path("results/runs"), help="where to import (%(default)s)")
    options = parser.parse_args(arguments)
    return entry.script(lambda: take(options.stores, options.store))


def take(stores: list[Path], store: Path) -> None:
    """Merge the stores and print what became of each run; raises UserError where one was not imported."""
    for other in stores:
        existing_folder(other)
    with entry.written("store", store):
        new, further, here, unsaved, busy, refused = merge(stores, store).values()
    print(f"{store}: {len(new)} new, {len(further)} trained further elsewhere, {len(here)} unchanged")
    if unsaved:
        print(f"without a checkpoint, not imported: {' '.join(unsaved)}")
    for line in refused:
        print(f"not imported: {line}")
    if busy:
        print(f"being trained, skipped: {' '.join(busy)}")
    if refused:
        raise UserError(f"{len(refused)} folders were not imported, see above")
    if busy:
        raise Locked(f"{len(busy)} runs are being trained; merge again when they have ended")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
