"""Runs the test suite with the oldest torch that pyproject.toml allows, in an environment of its own.

python scripts/test_oldest.py [--venv .venv-oldest] [PYTEST OPTIONS]

Installs torch and torchvision at the lower ends of their ranges, all other packages as in constraints.txt: about 6 GB,
and some minutes in addition to the tests. Run it whenever a range changes. Exit status: pytest's, or pip's.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLD = ("torch", "torchvision")
OF_TORCH = re.compile(r"(torch|torchvision|torchcodec|triton|setuptools|nvidia-\S+|cuda-\S+)==")  # as torch wants them


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-oldest")
    options, pytest = parser.parse_known_args(arguments)
    python = options.venv / "bin" / "python"
    if not python.exists():
        venv.create(options.venv, with_pip=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        file.write("\n".join([*(line for line in lines if not OF_TORCH.match(line)), *oldest()]))
        file.flush()
        install = [python, "-m", "pip", "install", "--quiet", "-c", file.name, "-e", f"{ROOT}[suite,dev]"]
        if status := subprocess.run(install).returncode:
            return status
    tests = pytest or ["-q", "-rs", "-n", "2", "--dist", "loadfile", "-m", "not slow and not slurm"]
    return subprocess.run(
        [python, "-m", "pytest", *tests], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ).returncode


def oldest() -> list[str]:
    """Return torch==2.11.0 and the like, from the lower ends in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = [*project["dependencies"], *project["optional-dependencies"]["suite"]]
    ends = {found[1]: found[2] for line in ranges if (found := re.match(r"(\S+?)>=([\d.]+)", line))}
    return [f"{name}=={ends[name]}.0" for name in OLD]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
