"""The files around the code agree with each other."""

import re
import subprocess
import sys
import tarfile
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import ROOT
from tests.docs_support import copy_repository

ALONE = """
import sys
for name in ('hydra', 'omegaconf', 'pydantic', 'wandb', 'torchvision', 'PIL', 'pandas', 'yaml', 'filelock', 'tqdm'):
    sys.modules[name] = None
import torch, normloss
normloss.NormLoss(torch.nn.Linear(2, 2), lam=0.1).before_step()
normloss.functional.norm_loss(torch.ones(1, 2)); normloss.Chain; normloss.WeightDecay
print(normloss.__file__)
"""
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WANTED = [*PYPROJECT["dependencies"], *chain.from_iterable(PYPROJECT["optional-dependencies"].values())]


def test_environment_yml_has_the_dependencies_of_pyproject():
    items = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [item["pip"] for item in items if isinstance(item, dict)]
    assert sorted(item for item in pip if not item.startswith("-")) == sorted({*WANTED})
    assert {"-e .", "-c constraints.txt"} <= set(pip)


def test_constraints_pin_every_dependency_exactly():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pinned = {re.split("==", line)[0].lower().replace("_", "-") for line in lines}
    assert all("==" in line for line in lines)
    for requirement in WANTED:
        assert re.match(r"[\w-]+", requirement)[0] in pinned


def test_version_is_the_same_everywhere():
    import normloss

    assert normloss.__version__ == PYPROJECT["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == PYPROJECT["version"]


def test_decisions_are_in_order_and_those_cited_are_there():
    page = (ROOT / "docs" / "decisions.md").read_text()
    known = re.findall(r'^\| <a id="(d\d+)"></a>(D\d+) \|', page, flags=re.M)
    assert len(known) > 20
    assert known == [(f"d{n}", f"D{n}") for n in range(1, len(known) + 1)]
    files = [*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "normloss").rglob("*.py")]
    cited = {match for file in files for match in re.findall(r"\b(D\d+)\b", file.read_text())}
    assert cited
    assert cited <= {decision for _, decision in known}


def test_every_page_of_docs_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = re.findall(r"[\w-]+\.md", str(nav))
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_methods_page_has_every_method():
    page = (ROOT / "docs" / "methods.md").read_text()
    assert {path.stem for path in (ROOT / "configs" / "reg").glob("*.yaml")} <= set(re.findall(r"`(\w+)`", page))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """sdist and wheel of this checkout."""
    out = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy_repository(out / "copy"))]
    subprocess.run(words, check=True, capture_output=True)
    return out


@pytest.mark.slow
def test_the_sdist_holds_the_whole_suite(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    for folder, pattern in {"configs": "*.yaml", "tests": "*.py", "docs": "*.md", "normloss": "*.py"}.items():
        assert {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(pattern)} <= held
    assert {"train.py", "Makefile", "constraints.txt", "results/summary.csv", "results/paper.yaml"} <= held
    assert not any(name.startswith(("results/runs", "site", ".venv")) for name in held)


@pytest.mark.slow
def test_the_wheel_alone_is_a_library_that_needs_torch_and_numpy(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", tmp_path, wheel]
    subprocess.run(words, check=True, capture_output=True)
    env = {"PYTHONPATH": str(tmp_path)}
    torch.save(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)).state_dict(), tmp_path / "model.pt")
    code = f"""{ALONE}
from normloss.cli.verbs import main
assert main(["inspect", "model.pt"]) == 0
assert main(["evaluate", "model.safetensors"]) == 2
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert Path(ran.stdout.splitlines()[0]).is_relative_to(tmp_path)
    assert "evaluate: needs the suite" in ran.stderr
    assert b"  inspect" in subprocess.check_output([tmp_path / "bin" / "normloss", "--help"], env=env)
