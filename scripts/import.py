"""Gone: scripts/merge.py takes the runs of another store."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout, whichever is installed

if __name__ == "__main__":  # before the slow imports
    from normloss.cli import start

    start.prepare()

print(
    "normloss: import.py: is gone; a run is a plain folder: copy its store, then scripts/merge.py STORE",
    file=sys.stderr,
)
sys.exit(2)
