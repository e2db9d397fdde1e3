"""Frees disk space: strips finished runs' checkpoints to their weights. DONE, logs and ids stay as they are.

python scripts/prune.py [STORE ...] [--dry]

--dry reports what would be freed. Unfinished runs keep everything that they need to resume.
"""

import sys
from pathlib import Path

import checkout  # noqa: F401  before the slow imports

from normloss.cli import entry, start
from normloss.runs.records import existing_folder, load_runs


def main(arguments: list[str]) -> int:
    parser = start.Parser(__doc__)
    parser.add_argument("stores", nargs="*", type=Path, default=[Path("results/runs")], metavar="STORE")
    parser.add_argument("--dry", action="store_true", help="change nothing, report only")
    options = parser.parse_args(arguments)
    return entry.script(lambda: prune_stores(options.stores, options.dry))


def prune_stores(stores: list[Path], dry: bool) -> None:
    """Prune the finished runs of stores and print the space freed."""
    from normloss.runs.checkpoint import prune

    for store in stores:
        done = [record for record in load_runs(existing_folder(store)) if record.state == "done"]
        with entry.written("STORE", store):
            freed = [prune(record.path, dry) for record in done]
        total = f"{sum(freed) / 1e6:.1f} MB {'would be ' if dry else ''}freed"
        print(f"{store}: {total}, of {sum(map(bool, freed))} of {len(done)} finished runs")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
