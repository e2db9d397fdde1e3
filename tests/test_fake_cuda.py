"""tests/fake_cuda.py in a process of its own: once it has seen fake CUDA tensors, torch's autograd cannot be forked."""

import os
import subprocess
import sys

from tests.conftest import ROOT


def test_the_cuda_code_on_fake_tensors():
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests/fake_cuda.py"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    passed = int(ran.stdout.splitlines()[-1].split(" passed")[0].split()[-1])
    assert passed > 40
