"""Runs to Weights & Biases from their own records: python scripts/wandb_sync.py --help"""

if __name__ == "__main__":  # before the slow imports
    from normloss.cli import start

    start.prepare()

import sys

from normloss.cli.wandb_sync import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
