"""Archives finished runs in results/archive/, small enough for git, and lists them in results/summary.csv.

python scripts/export.py [STORE ...] [--results results] [--weights ID ...] [--truncated ID ...]

The stores may come from any machines. Archived runs are never changed, so exporting again only adds runs.
--weights also writes results/weights/<id>.safetensors of these runs, which normloss.load(FILE) reads.
"""

import argparse
import sys
from pathlib import Path

import checkout  # noqa: F401  before the slow imports

from normloss.cli import entry, start
from normloss.errors import UserError
from normloss.runs import archive
from normloss.runs.records import RunRecord, existing_folder, load_runs

MOST_BYTES = 20 * 10**6  # of all weights in git


def main(arguments: list[str]) -> int:
    parser = start.Parser(__doc__)
    parser.add_argument("stores", nargs="*", type=Path, default=[Path("results/runs")], metavar="STORE")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where to archive (default: results)")
    parser.add_argument("--weights", nargs="+", default=[], metavar="ID", help="export the weights of these runs too")
    parser.add_argument("--truncated", "--trial", nargs="+", default=[], metavar="ID", help="archive truncated runs")
    options = parser.parse_args(arguments)
    return entry.script(lambda: export(options))


def export(options: argparse.Namespace) -> None:
    """Archive the finished runs of the stores, and their weights; raises UserError for an id without a run."""
    records = [record for store in options.stores for record in _export_store(store, options)]
    known = {record.id for record in records}
    for id in [*options.truncated, *options.weights]:
        if id not in known:
            stores = " ".join(map(str, options.stores))
            raise UserError(f"{id}: must be the id of a finished run of {stores}; stores come before the options")
    if options.weights:
        keep_weights([record for record in records if record.id in options.weights], options.results / "weights")


def _export_store(store: Path, options: argparse.Namespace) -> list[RunRecord]:
    """Archive a store's finished runs; return those whose archived numbers are the store's."""
    records = load_runs(existing_folder(store))
    done = [record for record in records if record.state == "done"]
    left_out = [record.id for record in done if record.truncated and record.id not in options.truncated]
    with entry.written("results", options.results):
        added, differing = archive.add(done, options.results, options.truncated)
    print(
        f"{store}: {len(added)} runs added to {options.results / 'archive'},"
        f" {len(done) - len(added) - len(left_out)} already there, {len(records) - len(done)} not finished"
    )
    if left_out:
        print(f"  truncated runs, not archived: {' '.join(left_out)} (--truncated ID archives one)")
    for id in differing:
        print(f"  {id} has other final numbers than the archived copy (another machine or version), which stays")
    return [record for record in done if record.id not in differing]


def keep_weights(records: list[RunRecord], folder: Path) -> None:
    """Write the weights that are not there yet; raises UserError if all together are too large for git."""
    from normloss.runs import weights

    files = {folder / f"{record.id}.safetensors": record for record in records}
    new = {file: record for file, record in files.items() if not file.exists()}
    for file, record in new.items():
        weights.export(record.path, record.final or {}, file)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if size > MOST_BYTES:
        for file in new:
            file.unlink()
        raise UserError(f"{folder}: must stay below {MOST_BYTES / 1e6:.0f} MB, got {size / 1e6:.1f} with these runs")
    there = len(records) - len(new)
    print(f"{folder}: weights of {len(new)} runs added, {there} already there; {size / 1e6:.1f} MB in all")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
