"""Every script's first import: this checkout's code is run, output goes anywhere, and a signal is one line."""

import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent

if Path(sys.argv[0]).resolve().parent == SCRIPTS:  # before the slow imports of a command; a test imports its own
    sys.path.insert(0, str(SCRIPTS.parent))
    from normloss.cli import start

    start.prepare()
