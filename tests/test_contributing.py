"""CONTRIBUTING's way to add a method, walked in a copy of the repository with the very text that it gives."""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT, ran
from tests.docs_support import blocks, copy_repository

PAGE = ROOT / "CONTRIBUTING.md"


def walk(copy: Path) -> list[str]:
    """Add the method of CONTRIBUTING to the copy; the commands that it says to try."""
    method = PAGE.read_text().split("## Add a method")[1].split("\n## ")[0]
    given = [block for block in blocks(PAGE) if block.text in method]
    penalty, line = [block.text for block in given if block.kind == "python"]
    (settings,) = [block.text for block in given if block.kind == "yaml"]
    files = re.findall(r"\*\*\d\.\*\*.*?`([\w/.]+)`", method, flags=re.S)
    assert files == [
        "normloss/regularizers/penalties.py",
        "normloss/regularizers/__init__.py",
        "configs/reg/group_lasso.yaml",
    ]
    penalties, names, config = (copy / file for file in files)
    penalties.write_text(penalties.read_text() + "\n\n" + penalty)
    text = names.read_text()
    (name,) = re.findall(r"class (\w+)", penalty)
    text = text.replace("penalties import ", f"penalties import {name}, ", 1)
    text = re.sub(r"(\nREGULARIZERS.*= \{\n(?:    .*\n)*)", lambda match: match[1] + line, text)
    assert text.count(name) == 2  # imported and named
    names.write_text(text)
    config.write_text(settings)
    return next(block.commands for block in given if block.kind == "sh")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_method_is_added_as_contributing_says_and_breaks_no_test(tmp_path):
    copy = copy_repository(tmp_path / "normloss")
    trained, tested = walk(copy)
    ended = ran(*trained.split()[1:], cwd=copy, PYTHONPATH=str(copy))
    assert re.search(r"\(digits resnet8 group_lasso lam=0.0001 seed=0 .*\) is done", ended.stdout)
    words = tested.split('"')  # ... -k "group_lasso or refused"
    words = [*words[0].split()[1:], *words[1:2]]
    ended = ran(*words, "-p", "no:cacheprovider", cwd=copy, PYTHONPATH=str(copy))
    assert int(re.search(r"(\d+) passed", ended.stdout)[1]) > 80
