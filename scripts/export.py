"""Writes finished runs to results/summary.csv and results/curves/, small for git.

python scripts/export.py [STORE ...] [--results results]

Any number of stores, of any machine; what is archived already stays as it is, so that exporting again changes nothing.
"""

import argparse
import sys
from pathlib import Path

from normloss.analysis import archive
from normloss.cli import entry
from normloss.errors import UserError
from normloss.runs.records import load_runs


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="*", type=Path, default=[Path("results/runs")], metavar="STORE")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--window", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.window:
        return entry.script(refuse_window)
    return entry.script(lambda: [export(store, options.results) for store in options.stores])


def refuse_window() -> None:
    raise UserError(
        "--window: is gone; a run is a plain folder: copy, rsync or tar the store; on the other machine"
        " scripts/merge.py STORE takes its runs"
    )


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
