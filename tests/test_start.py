"""What is imported before a run's first step: what it uses; nothing that asks a device or starts a thread."""

from tests.conftest import ran

HEAVY = {"torchvision", "torchcodec", "sklearn", "scipy", "pandas", "matplotlib", "wandb", "nbclient", "IPython"}
CODE = """
import os, sys
from normloss.training import gpus
gpus.visible()
assert "torch" not in sys.modules
import torch, torch._dynamo
def refuse(*_): raise AssertionError("a device was asked for")
torch._C._cuda_init = torch._C._cuda_getDeviceCount = torch.cuda._lazy_init = torch.cuda.is_available = refuse
import train
from normloss.sweeps import processes
processes.preload()
assert "normloss.training.trainer" in sys.modules
print(len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 1)
print(*{name.split(".")[0] for name in sys.modules} - {"torch"})
"""


def test_a_run_imports_what_it_uses_and_touches_no_device():
    ended = ran("-c", CODE, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    threads, modules = ended.stdout.splitlines()
    assert int(threads) == 1
    assert HEAVY.isdisjoint(modules.split())
