"""Takes runs of other stores into this one: python scripts/merge.py --help"""

import sys

from normloss.cli.merge import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
