"""Finished runs keep their weights alone: python scripts/prune.py --help, the same as normloss prune."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout, whichever is installed

if __name__ == "__main__":  # before the slow imports
    from normloss.cli import start

    start.prepare()

from normloss.cli.prune import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
