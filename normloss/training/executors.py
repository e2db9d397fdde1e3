"""The executor of the step, train.executor: eager and compile of training/eager.py, graph of training/graph.py.

On a CUDA device whose images are there as tensors, graph and compile are captured, and auto takes what was measured to
be fastest on it: the entry that scripts/gpu_check.py wrote to executors.json in the store, without one a graph.
Elsewhere auto is eager.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from normloss.config import Config
from normloss.data import TensorData
from normloss.errors import UserError
from normloss.regularizers import Regularizer
from normloss.runs.files import load_json
from normloss.runs.provenance import versions
from normloss.runs.store import Run
from normloss.training.device import describe
from normloss.training.distributed import ProcessGroup, SingleProcess
from normloss.training.eager import Compiled, DistributedStep, Eager
from normloss.training.graph import CudaCapture, CudaGraph

MEASURED = "executors.json"  # in a store


def build(
    cfg: Config, model: nn.Module, reg: Regularizer, optimizer: Optimizer, data: Any, run: Run | None = None,
    group: SingleProcess | None = None,
) -> Eager:  # fmt: skip
    """Return the executor of train.executor, for auto the best that is possible; raises UserError if it is impossible.

    data: with the device of its batches. run: whose earlier executor auto keeps, and where a graph that cannot be
    captured is noted. group: of processes that share the step.
    """
    parts = (model, reg, optimizer, cfg.train)
    if isinstance(group, ProcessGroup):
        return DistributedStep(*parts, group=group)
    name = choose(cfg, reg, data, run) if cfg.train.executor == "auto" else cfg.train.executor
    if why := obstacle(name, cfg, reg, data):
        raise UserError(f"train.executor: {name} {why}; choose auto or eager")
    if name == "eager":
        return Eager(*parts)
    keep_compiled(Path(cfg.store))
    if obstacle("graph", cfg, reg, data):
        return Compiled(*parts)
    compiled = Compiled(*parts).model if name == "compile" else None
    return CudaGraph(*parts, CudaCapture(data.device), run, compiled)


def obstacle(name: str, cfg: Config, reg: Regularizer, data: Any) -> str | None:
    """Return why an executor cannot run this; None if it can."""
    if name == "compile" and reg.needs_input_grad:
        return f"has no double backward, which reg={cfg.reg.name} needs"
    if name == "graph" and data.device.type != "cuda":
        return f"needs a CUDA device, got {data.device}"
    if name == "graph" and not isinstance(data, TensorData):
        return f"needs a data set that stays on the device as tensors, which {cfg.dataset.name} does not"
    if name == "graph" and not reg.capturable:
        return f"cannot replay the steps of reg={cfg.reg.name}"
    return None


def keep_compiled(store: Path) -> None:
    """Let Inductor's cache travel with a store, unless TORCHINDUCTOR_CACHE_DIR says where it is."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # slow, for those who compile

    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in (None, default_cache_dir()):  # which torch sets as it is imported
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(store.absolute() / "inductor")


# auto ----------------------------------------------------------------------------------------------


def choose(cfg: Config, reg: Regularizer, data: Any, run: Run | None = None) -> str:
    """Return what auto takes, and print why where there is a choice: a run that resumes keeps what it had.

    A method that cannot be compiled, or captured, takes the next best.
    """
    if data.device.type != "cuda" or not isinstance(data, TensorData):
        return "eager"
    wanted, why = "graph", f"not measured: {cell(cfg, data.device)}"
    if entry := measured(cfg.store).get(cell(cfg, data.device)):
        wanted, why = entry["executor"], f"by {Path(cfg.store) / MEASURED}"
    if run and run.status["saved"]:
        before = run.meta["sessions"][-2]  # its last is this one
        was = f"{before.get('device_name')}, torch {before.get('versions', {}).get('torch')}"
        had = before.get("executor", wanted).partition(" ")[0]  # eager (graph: why it could not be captured)
        wanted, why = (had, "as before") if was == where(data.device) else (wanted, f"{why}; before {had} on {was}")
    name = next(form for form in (wanted, "graph", "eager") if obstacle(form, cfg, reg, data) is None)
    print(f"executor: {name} ({why})", flush=True)
    return name


@cache
def measured(store: str) -> dict[str, Any]:
    """Return the entries of a store's executors.json by cell, read once: a sweep's members have those of its parent."""
    file = Path(store) / MEASURED
    return load_json(file) if file.exists() else {}


def where(device: torch.device) -> str:
    """Return what a measured speed holds for: the device and torch."""
    return f"{describe(device)['device_name']}, torch {versions()['torch']}"


def cell(cfg: Config, device: torch.device) -> str:
    """Return the key of an entry of executors.json; not the method, so that those compared run alike."""
    train = cfg.train
    what = f"{cfg.model.name}, batch {train.batch_size}, {train.precision}"
    return f"{where(device)}, cuDNN {torch.backends.cudnn.version()}, {what}"
