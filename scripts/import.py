"""Gone: scripts/merge.py takes the runs of another store."""

if __name__ == "__main__":  # before the slow imports
    from normloss.cli import start

    start.prepare()

import sys

print(
    "normloss: import.py: is gone; a run is a plain folder: copy its store, then scripts/merge.py STORE",
    file=sys.stderr,
)
sys.exit(2)
