"""Archives finished runs in results/archive/, small enough for git, and lists them in results/summary.csv.

python scripts/export.py [STORE ...] [--results results] [--weights ID ...] [--trial ID ...]

Any number of stores, of any machine; what is archived already stays as it is, so that exporting again changes nothing.
--weights: also results/weights/<id>.safetensors of these runs, which normloss.load(FILE) gives back as a model.
"""

import argparse
import sys
from pathlib import Path

import checkout  # noqa: F401  before the slow imports

from normloss.cli import entry
from normloss.errors import UserError
from normloss.runs import archive
from normloss.runs.records import RunRecord, existing_store, load_runs

MOST_BYTES = 20 * 10**6  # of all weights in git


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="*", type=Path, default=[Path("results/runs")], metavar="STORE")
    parser.add_argument("--results", type=Path, default=Path("results"), help="(%(default)s)")
    parser.add_argument("--weights", nargs="+", default=[], metavar="ID", help="keep the weights of these runs too")
    parser.add_argument("--trial", nargs="+", default=[], metavar="ID", help="archive these truncated runs too")
    options = parser.parse_args(arguments)
    return entry.script(lambda: export(options))


def export(options: argparse.Namespace) -> None:
    """Do the command's work; raises UserError."""
    records = [record for store in options.stores for record in _export_store(store, options.results, options.trial)]
    known = {record.id for record in records}
    for id in [*options.trial, *options.weights]:
        if id not in known:
            raise UserError(
                f"{id}: no finished run of {' '.join(map(str, options.stores))} has this id and is archived so"
            )
    if options.weights:
        keep_weights([record for record in records if record.id in options.weights], options.results / "weights")


def _export_store(store: Path, results: Path, truncated: list[str]) -> list[RunRecord]:
    """Archive a store's finished runs; those that the archive holds as they are here."""
    records = load_runs(existing_store(store))
    done = [record for record in records if record.state == "done"]
    left_out = [record.id for record in done if record.truncated and record.id not in truncated]
    with entry.written("results", results):
        added, differing = archive.add(done, results, truncated)
    print(
        f"{store}: {len(added)} runs added to {results / 'archive'},"
        f" {len(done) - len(added) - len(left_out)} were there, {len(records) - len(done)} are not finished"
    )
    if left_out:
        print(f"  truncated runs, left out: {' '.join(left_out)} (--trial ID archives one)")
    for id in differing:
        print(f"  {id} has other final numbers here (another machine or version); the archived ones stay")
    return [record for record in done if record.id not in differing]


def keep_weights(records: list[RunRecord], folder: Path) -> None:
    """Write the weights that are not there yet; raises UserError where they would take more than git should hold."""
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
    print(f"{folder}: weights of {len(new)} runs added, {there} were there; {size / 1e6:.1f} MB in all")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
