"""Takes runs of other stores into this one: python scripts/merge.py --help"""

if __name__ == "__main__":  # before the slow imports
    from normloss.cli import start

    start.prepare()

import sys

from normloss.cli.merge import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
