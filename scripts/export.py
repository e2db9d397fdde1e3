"""Writes finished runs to results/summary.csv and results/curves/, small for git; or all runs to files that travel.

python scripts/export.py [STORE ...] [--results results]
python scripts/export.py [STORE] --window OUT [--files 8] [--file-mib 16]

Any number of stores, of any machine; what is archived already stays as it is, so that exporting again changes nothing.
--window OUT: finished runs' records and unfinished runs' checkpoints as OUT/window-*.zip, which scripts/import.py
brings back into a store on another machine, where the runs go on.
"""

import argparse
import sys
from pathlib import Path

from normloss import bundles
from normloss.analysis import archive
from normloss.cli import entry
from normloss.errors import UserError
from normloss.runs.records import load_runs


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="*", type=Path, default=[Path("results/runs")], metavar="STORE")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--window", type=Path, metavar="OUT", help="folder of the files that travel")
    parser.add_argument("--files", type=int, default=8, help="at most so many (%(default)s)")
    parser.add_argument("--file-mib", type=float, default=16, help="each of about so many MiB (%(default)s)")
    options = parser.parse_args(arguments)
    if options.window:
        return entry.script(lambda: export_window(options))
    return entry.script(lambda: [export(store, options.results) for store in options.stores])


def export_window(options: argparse.Namespace) -> None:
    (store,) = options.stores if len(options.stores) == 1 else [None]
    if store is None:
        raise UserError(f"--window: takes one store, got {len(options.stores)}")
    check_store(store)
    if not (options.files >= 1 and options.file_mib > 0):
        raise UserError(f"--files and --file-mib: must be greater than 0, got {options.files}, {options.file_mib:g}")
    try:
        done = bundles.export(store, options.window, options.files, int(options.file_mib * 2**20))
    except OSError as error:
        where = f"{options.window} ({error.strerror})"
        raise UserError(f"--window: must be a folder that can be written, got {where}") from None
    size = sum(path.stat().st_size for path in done.paths) / 2**20
    print(
        f"{len(done.finished)} finished and {len(done.unfinished)} unfinished runs in {len(done.paths)} files,"
        f" {size:.1f} MiB: {options.window}"
    )
    if done.too_large:
        print(f"left out, since they do not fit: {' '.join(done.too_large)} (--files, --file-mib)")
    if done.busy:
        print(f"being trained, left out: {' '.join(done.busy)}")


def check_store(store: Path) -> None:
    if not store.is_dir():
        raise UserError(f"{store}: no such store; runs are in results/runs unless train.py was given store=DIR")


def export(store: Path, results: Path) -> None:
    check_store(store)
    records = load_runs(store)
    done = [record for record in records if record.state == "done"]
    try:
        added, differing = archive.add(done, results)
    except OSError as error:
        raise UserError(f"results: must be a folder that can be written, got {results} ({error.strerror})") from None
    print(
        f"{store}: {len(added)} runs added to {results / 'summary.csv'}, {len(done) - len(added)} were there,"
        f" {len(records) - len(done)} are not finished"
    )
    for id in differing:
        print(f"  {id} has other final numbers here (another machine or version); the archived ones stay")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
