"""Writes docs/commands.md from the --help of every command of this repository.

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
COMMANDS = {  # heading -> command
    "train.py": ["train.py"],
    **{f"scripts/{name}": [f"scripts/{name}"] for name in SCRIPTS},
    "normloss inspect": ["-m", "normloss", "inspect"],
    "normloss evaluate": ["-m", "normloss", "evaluate"],
}
HEAD = """# Commands

Every command of a clone of this repository, with its arguments. This command writes the page from the commands' own
`--help`:

<!-- run by tests/test_readme.py -->
```sh
python scripts/commands.py
```

## Exit statuses

| status | meaning |
|---:|---|
| 0 | done |
| 1 | internal error: the traceback says where |
| 2 | invalid config, arguments or data: one line names the key, the requirement and the value |
| 3 | the run diverged |
| 4 | another process is training this run |
| 75 | stopped by a signal, the end of a budget or a full disk: rerun the command to resume |

A sweep ends with the worst status of its runs, the worst first: 1, 2, 3, 4, 75.
"""


def main(arguments: list[str]) -> int:
    parser = start.Parser(__doc__)
    parser.parse_args(arguments)
    parts = [HEAD, *(f"## {name}\n\n```text\n{help_of(words)}\n```\n" for name, words in COMMANDS.items())]
    PAGE.write_text("\n".join(parts))
    return 0


def help_of(words: list[str]) -> str:
    """Return what a command prints with --help, in 100 columns, without trailing spaces."""
    given = [sys.executable, *words, "--help"]
    ran = subprocess.run(
        given, cwd=ROOT, env=os.environ | {"COLUMNS": "100"}, check=True, capture_output=True, text=True
    )
    return "\n".join(line.rstrip() for line in ran.stdout.strip().splitlines())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
