"""The device that a run trains on, its threads, precision and random seed."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from normloss.config import Config
from normloss.errors import Interrupted, UserError, named
from normloss.runs.provenance import cores, cpu_model
from normloss.training.distributed import processes

TENSOR_CORES = (8, 0)  # compute capability from which they take TF32 and bfloat16; before, bfloat16 is emulated
LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]  # not in its __all__


def setup(cfg: Config) -> torch.device:
    """Choose the device, seed torch, set threads and precision for this process.

    Raises UserError for a device that is not there, does not work or lacks the precision.
    """
    device = choose(cfg.device)
    check(device, cfg.train.precision)
    torch.manual_seed(cfg.seed)
    # of two cores one, since threads that wait for each other spin; sums depend on the number of threads, so that it
    # does not depend on what else the machine does
    torch.set_num_threads(cfg.threads or (1 if cores() <= 2 else min(8, cores())))
    set_tf32(cfg.train.precision == "tf32")
    torch.backends.cudnn.benchmark = not cfg.deterministic
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return device


def set_tf32(tf32: bool) -> None:
    """Compute float32 products and convolutions in TF32, or in float32.

    These three, in this order, agree for every reader of torch 2.11 to 2.15, Inductor and torch.export among them; the
    newer setters alone make the older flags raise.
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.fp32_precision = "tf32" if tf32 else "ieee"


def choose(name: str) -> torch.device:
    """Return the device of a name, for auto cuda, then mps, then cpu; raises UserError if it is not there."""
    with warnings.catch_warnings(record=True) as caught:  # torch's, about a driver that it cannot use
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [f"cuda:{i}" for i in range(count)]
    trouble = str(caught[0].message).strip().partition("\n")[0] if caught and not gpus else ""
    there = [*gpus, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]
    if gpus and name in ("auto", "cuda") and processes() > 1:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    if name == "auto":
        if trouble:
            print(f"device: {there[0]}, since CUDA cannot be used ({trouble})", flush=True)
        return torch.device(there[0])
    if name not in (*there, "cuda" if gpus else None):
        why = f"; CUDA cannot be used ({trouble})" if trouble else ""
        raise UserError(f"device: must be there, got {name}; there are: {' '.join(there)}{why}")
    return torch.device(name)


def check(device: torch.device, precision: str) -> None:
    """Raises UserError if a device computes nothing, or not in this precision (D21)."""
    if device.type != "cuda":
        if precision == "tf32":
            raise UserError(f"train.precision: tf32 needs a CUDA device, got {device}; choose fp32")
        return
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    try:
        with report_out_of_memory(device):
            torch.zeros(1, device=device).add_(1).cpu()
    except RuntimeError as error:
        line = f"device: {device} ({name}) must work with torch {torch.__version__}, got {named(error)}"
        raise UserError(line) from None
    if precision != "fp32" and torch.version.hip is None and capability < TENSOR_CORES:
        got = f"{name} of {'.'.join(map(str, capability))}"
        raise UserError(f"train.precision: {precision} needs compute capability 8.0 or newer, got {got}; choose fp32")


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that is queued on any of its streams."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe(device: torch.device) -> dict[str, Any]:
    """Return the facts about the device for meta.json."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()
    return {"device": str(device), "device_name": name, "threads": torch.get_num_threads(), "cuda": torch.version.cuda}


@contextmanager
def report_out_of_memory(device: torch.device) -> Iterator[None]:
    """Within this block a device without enough memory interrupts the run, in one line; what was saved is whole."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # a CPU has no type for it, nor has pinned memory
        said = "DefaultCPUAllocator" in str(error) or "CUDA error: out of memory" in str(error)
        if not (said or isinstance(error, torch.OutOfMemoryError | MemoryError)):
            raise
        line = str(error).partition("\n")[0] or "MemoryError"
        raise Interrupted(
            f"{device} has too little memory ({line}); free some and rerun the command to resume; a smaller"
            " train.batch_size or train.micro_batch is another run"
        ) from None
