"""Finished runs keep their weights alone: python scripts/prune.py --help"""

import sys

from normloss.cli.prune import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
