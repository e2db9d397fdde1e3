"""The pages of the documentation, the commands and snippets in them, and copies of the repository to try them in."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and the comment right above it: who runs it, or why nobody does."""

    page: str
    kind: str  # sh, python, yaml, text
    text: str
    comment: str

    @property
    def needs(self) -> str:
        """What it needs that no test has: "a GPU", "a cluster"; or ""."""
        return self.comment.removeprefix("needs ") if self.comment.startswith("needs ") else ""

    @property
    def runner(self) -> str:
        """The test file that runs it, where it is not tests/test_readme.py."""
        return self.comment.removeprefix("run by ") if self.comment.startswith("run by ") else ""

    @property
    def commands(self) -> list[str]:
        """Its lines without what is said of them; a line that ends in a backslash goes on."""
        lines = re.sub(r"\\\n\s*", "", self.text).splitlines()
        return [command for line in lines if (command := re.split(r"\s{2,}#", line)[0].strip())]


def blocks(page: Path) -> list[Block]:
    found = re.finditer(r"(?:^<!-- ([^\n]*) -->\n)?^```(\w+)\n(.*?)^```$", page.read_text(), flags=re.S | re.M)
    name = page.relative_to(ROOT).as_posix()
    return [Block(name, kind, text, comment or "") for comment, kind, text in (match.groups() for match in found)]


BLOCKS = [block for page in PAGES for block in blocks(page)]


def copy_repository(target: Path) -> Path:
    """What git has or would take of this checkout, in the new folder `target`."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():  # not deleted since
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    return target
