"""The imports of a run before its first step."""

import subprocess
import sys

from tests.conftest import ROOT

HEAVY = {"torchvision", "torchcodec", "sklearn", "scipy", "pandas", "matplotlib", "wandb", "nbclient", "IPython"}


def test_a_run_imports_nothing_that_it_does_not_use():
    code = (
        "import sys, torch, torch._dynamo, train\n"
        "from normloss.sweeps import processes\n"
        "processes.preload()\n"
        "print(*{name.split('.')[0] for name in sys.modules} - {'torch'})\n"
    )
    asked = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(asked.stdout.split())
