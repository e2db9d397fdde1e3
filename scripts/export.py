"""Finished runs into results/, small for git: python scripts/export.py --help"""

import sys

from normloss.cli.export import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
