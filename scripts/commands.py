"""Writes docs/commands.md, all but its first part, from the --help of every command of this repository.

python scripts/commands.py
"""

import os
import subprocess
import sys
from pathlib import Path

import checkout  # noqa: F401  before the slow imports

from normloss.cli import start

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "commands.md"
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py") if path.name != "checkout.py")  # which is none
COMMANDS = ["train.py", *(f"scripts/{name}" for name in SCRIPTS), "-m normloss inspect", "-m normloss evaluate"]


def main(arguments: list[str]) -> int:
    start.Parser(__doc__).parse_args(arguments)
    head = PAGE.read_text().partition("## train.py")[0]
    parts = (f"## {each.removeprefix('-m ')}\n\n```text\n{help_of(each)}\n```\n" for each in COMMANDS)
    PAGE.write_text(head + "\n".join(parts))
    return 0


def help_of(command: str) -> str:
    """Return what a command prints with --help, in 100 columns, without trailing spaces."""
    given = [sys.executable, *command.split(), "--help"]
    ran = subprocess.run(
        given, cwd=ROOT, env=os.environ | {"COLUMNS": "100"}, check=True, capture_output=True, text=True
    )
    return "\n".join(line.rstrip() for line in ran.stdout.strip().splitlines())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
