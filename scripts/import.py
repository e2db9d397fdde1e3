"""Brings window-*.zip of another machine into a store, where unfinished runs go on.

python scripts/import.py FOLDER ... [--store results/runs]

Every file is checked; a run that is here and as far or further stays, so that importing again changes nothing.
"""

import argparse
import sys
from pathlib import Path

from normloss import bundles
from normloss.cli import entry
from normloss.errors import UserError


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="each holds one export's window-*.zip")
    parser.add_argument("--store", type=Path, default=Path("results/runs"), help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    return entry.script(lambda: bring(options.folders, options.store))


def bring(folders: list[Path], store: Path) -> None:
    try:
        done = bundles.bring(folders, store)
    except OSError as error:
        raise UserError(f"store: must be a folder that can be written, got {store} ({error.strerror})") from None
    print(f"{len(done.brought)} runs brought into {store}, {len(done.kept)} were there as far or further")
    if done.busy:
        print(f"being trained here, left alone: {' '.join(done.busy)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
