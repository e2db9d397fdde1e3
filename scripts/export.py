"""Finished runs into results/, small for git: python scripts/export.py --help"""

if __name__ == "__main__":  # before the slow imports
    from normloss.cli import start

    start.prepare()

import sys

from normloss.cli.export import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
