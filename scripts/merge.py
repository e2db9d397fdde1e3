"""Takes runs of other stores into this one, where they are new or further than here.

python scripts/merge.py STORE ... [--store results/runs]

A run is a plain folder: copy, rsync or tar a store from another machine, then merge it. A run that is here too is taken
where the other's epochs go on from ours; two finished ones must agree in their final metrics. Anything else is named
and both are left as they are: exit status 2. A run that is being trained is skipped.
"""

import argparse
import sys
from pathlib import Path

import checkout  # noqa: F401  before the slow imports

from normloss.cli import entry
from normloss.errors import Locked, UserError
from normloss.runs.merge import merge
from normloss.runs.records import existing_store


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="+", type=Path, metavar="STORE")
    parser.add_argument("--store", type=Path, default=Path("results/runs"), help="takes the runs (%(default)s)")
    options = parser.parse_args(arguments)
    return entry.script(lambda: take(options.stores, options.store))


def take(stores: list[Path], store: Path) -> None:
    """Merge and say what became of each run; raises UserError where one could not be taken."""
    for other in stores:
        existing_store(other)
    with entry.written("store", store):
        new, further, here, unsaved, busy, refused = merge(stores, store).values()
    print(
        f"{store}: {len(new)} runs are new, {len(further)} further than they were,"
        f" {len(here)} were here as far or further"
    )
    if unsaved:
        print(f"nothing saved in them yet: {' '.join(unsaved)}")
    for line in refused:
        print(f"left out: {line}")
    if busy:
        print(f"in training, skipped: {' '.join(busy)}")
    if refused:
        raise UserError(f"{len(refused)} of the folders could not be taken, see above")
    if busy:
        raise Locked(f"{len(busy)} of the runs are being trained; merge again when they have ended")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
