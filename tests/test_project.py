"""The files around the code agree with each other."""

import re
import subprocess
import sys
import tomllib

import yaml

from tests.conftest import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_environment_yml_has_the_dependencies_of_pyproject():
    (pip,) = [
        item["pip"]
        for item in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
        if isinstance(item, dict)
    ]
    extras = PYPROJECT["optional-dependencies"]
    wanted = [*PYPROJECT["dependencies"], *extras["suite"], *extras["dev"]]
    assert sorted(item for item in pip if not item.startswith("-")) == sorted(wanted)
    assert {"-e .", "-c constraints.txt"} <= set(pip)


def test_constraints_pin_every_dependency_exactly():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pinned = {re.split("==", line)[0].lower().replace("_", "-") for line in lines}
    assert all("==" in line for line in lines)
    extras = PYPROJECT["optional-dependencies"]
    for requirement in [*PYPROJECT["dependencies"], *extras["suite"], *extras["dev"]]:
        assert re.match(r"[\w-]+", requirement)[0] in pinned


def test_version_is_the_same_everywhere():
    import normloss

    assert normloss.__version__ == PYPROJECT["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == PYPROJECT["version"]


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in re.search(r"^\.PHONY: (.*)", makefile, flags=re.M)[1].split():
        assert re.search(rf"\b{target}\b", shown), target


def test_decisions_cited_in_configs_and_code_are_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    known = set(re.findall(r"^\| (D\d+) \|", readme, flags=re.M))
    files = [*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "normloss").rglob("*.py")]
    cited = {match for file in files for match in re.findall(r"\b(D\d+)\b", file.read_text())}
    assert cited
    assert cited <= known


def test_readme_is_at_most_200_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_library_imports_with_torch_alone():
    """The suite's packages are an extra: the regularizers must not need them."""
    code = (
        "import sys\n"
        "for name in ('hydra', 'omegaconf', 'pydantic', 'wandb', 'torchvision', 'PIL', 'pandas', 'yaml'):\n"
        "    sys.modules[name] = None\n"
        "import torch, normloss\n"
        "normloss.NormLoss(torch.nn.Linear(2, 2), lam=0.1).before_step()\n"
        "normloss.functional.norm_loss(torch.ones(1, 2)); normloss.Chain; normloss.WeightDecay\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
