"""Imports go one way, down: what each part of normloss may import, and that the library stands without the suite."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, ran

LEVELS = {
    "functional": 0,
    "regularizers": 0,
    "diagnostics": 0,
    "errors": 0,
    "output": 0,
    "signals": 0,
    "config": 1,
    "data": 2,
    "models": 2,
    "runs": 2,
    "training": 3,
    "sweeps": 4,
    "analysis": 5,
    "cli": 6,
}
LIBRARY = {"functional", "regularizers", "diagnostics"}
SUITE = {"hydra", "omegaconf", "pydantic", "wandb", "yaml", "torchvision", "pandas", "matplotlib", "filelock", "scipy"}


def part(module: str) -> str | None:
    """The part of normloss that a module belongs to: normloss.runs.store -> runs; None for normloss itself."""
    return module.split(".")[1] if module.startswith("normloss.") else None


def files_of(name: str) -> list[Path]:
    folder = ROOT / "normloss" / name
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imports(path: Path) -> Iterator[str]:
    """The full names of what a file imports, anywhere but where it is run as a command: `from normloss import config`
    is normloss.config."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not ast.unparse(node).startswith("if __name__ == '__main__'")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_part_has_a_level():
    modules = [
        path for path in (ROOT / "normloss").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    assert {path.stem for path in modules} - {"__init__", "__main__"} == set(LEVELS)


@pytest.mark.parametrize("name", LEVELS)
def test_imports_go_down_only(name):
    imported = {part(module) for file in files_of(name) for module in imports(file)} - {None, name}
    assert not [other for other in imported if LEVELS.get(other, 0) > LEVELS[name]]


def test_the_library_imports_nothing_of_the_suite():
    script = (
        "import sys, torch\n"  # torch may import what it likes
        "before = set(sys.modules)\n"
        "import normloss, normloss.functional, normloss.diagnostics, normloss.regularizers\n"
        "for name in normloss.__all__: getattr(normloss, name)\n"
        "print(*sorted(set(sys.modules) - before))\n"
    )
    new = set(ran("-c", script).stdout.split())
    assert {module.split(".")[0] for module in new}.isdisjoint(SUITE)
    assert {part(module) for module in new if part(module)} == LIBRARY
