"""A class-folder tree of small images as one .npz file: python scripts/npz.py --help"""

if __name__ == "__main__":  # before the slow imports
    from normloss.cli import start

    start.prepare()

import sys

from normloss.cli.npz import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
