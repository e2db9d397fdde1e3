"""Gone: scripts/merge.py takes the runs of another store."""

import sys

print(
    "normloss: import.py: is gone; a run is a plain folder: copy its store, then scripts/merge.py STORE",
    file=sys.stderr,
)
sys.exit(2)
