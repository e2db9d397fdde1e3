"""Writes results/report.html, one page of all studies, and everything that scripts/figures.py writes.

python scripts/report.py [--store results/runs] [--results results]
"""

import sys

import figures


def main(arguments: list[str]) -> int:
    return figures.main(arguments, __doc__, html=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
