"""Archives finished runs in results/archive/, small enough for git, and lists them in results/summary.csv.

python scripts/export.py [STORE ...] [--results results] [--weights ID ...]

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


def main(arguments: list[str]) -> int:
    parser = start.Parser(__doc__)
    parser.add_argument("stores", nargs="*", type=Path, default=[Path("results/runs")], metavar="STORE")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where to archive (default: results)")
    parser.add_argument("--weights", nargs="+", default=[], metavar="ID", help="export the weights of these runs too")
    options = parser.parse_args(arguments)
    return entry.script(lambda: export(options))


def export(options: argparse.Namespace) -> None:
    """Archive the finished runs of the stores, and their weights; raises UserError for an id without a run."""
    records = {record.id: record for store in options.stores for record in _export_store(store, options.results)}
    for id in options.weights:
        if id not in records:
            stores = " ".join(map(str, options.stores))
            raise UserError(f"{id}: must be the id of a finished run of {stores}; stores come before the options")
        from normloss.runs import weights  # slow: it takes torch

        file = options.results / "weights" / f"{id}.safetensors"
        if file.exists():
            print(f"{file}: already there")
        else:
            weights.export(records[id].path, records[id].final or {}, file)
            print(f"{file}: added")


def _export_store(store: Path, results: Path) -> list[RunRecord]:
    """Archive a store's finished runs; return those whose archived numbers are the store's."""
    records = load_runs(existing_folder(store))
    done = [record for record in records if record.state == "done"]
    truncated = [record.id for record in done if record.truncated]
    with entry.written("results", results):
        added, differing = archive.add(done, results)
    print(
        f"{store}: {len(added)} runs added to {results / 'archive'},"
        f" {len(done) - len(added) - len(truncated)} already there, {len(records) - len(done)} not finished"
    )
    if truncated:
        print(f"  truncated runs, not archived: {' '.join(truncated)}")
    for id in differing:
        print(f"  {id} has other final numbers than the archived copy (another machine or version), which stays")
    return [record for record in done if record.id not in differing]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
