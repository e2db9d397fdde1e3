"""Where a result comes from, as meta.json has it."""

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, ran


def git(*words, at):
    subprocess.run(
        ["git", "-C", at, "-c", "user.name=x", "-c", "user.email=x@x", *words], check=True, capture_output=True
    )


@pytest.fixture
def unpacked(tmp_path):
    """The code as an archive of it unpacks, without a repository of its own."""
    to = tmp_path / "theirs" / "normloss"
    shutil.copytree(ROOT / "normloss", to / "normloss", ignore=shutil.ignore_patterns("__pycache__"))
    return to


def told(checkout: Path) -> str:
    script = "from normloss.runs import provenance; print(provenance.code())"
    return ran("-c", script, cwd=checkout, PYTHONPATH="").stdout.strip()


def test_the_repository_of_somebody_else_is_not_ours(unpacked):
    assert told(unpacked) == "{'commit': None, 'dirty': None}"
    git("init", at=unpacked.parent)
    (unpacked.parent / "theirs.txt").write_text("x")
    git("add", "theirs.txt", at=unpacked.parent)
    git("commit", "-m", "theirs", at=unpacked.parent)
    assert told(unpacked) == "{'commit': None, 'dirty': None}"


def test_a_checkout_of_its_own_is_named_with_its_changes(unpacked):
    git("init", at=unpacked)
    git("add", ".", at=unpacked)
    git("commit", "-m", "ours", at=unpacked)
    assert "'dirty': False" in told(unpacked)
    (unpacked / "normloss" / "py.typed").write_text("changed")
    assert "'dirty': True" in told(unpacked)
