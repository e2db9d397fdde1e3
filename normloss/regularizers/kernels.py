"""Which form of norm loss serves which weights: grouped filters on every device, or one Triton launch on a GPU."""

import os
import shutil
import sysconfig
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from normloss.regularizers.filter_groups import FilterBatches, FilterGroups, memory_formats


class Form(Protocol):
    def add_norm_loss(self, lam: float) -> None: ...


KERNELS = ("triton", "batched", "grouped")


def forms(weights: list[Tensor], kernel: str) -> list[Form]:
    """Forms that together add norm loss to the gradients of all `weights`, one for each device, dtype and kernel.

    kernel: one of KERNELS, or "auto": batches on a CPU, groups elsewhere; Triton has not been timed on a GPU yet.
    Raises ValueError for another word, and for "triton" where it does not serve a weight; RuntimeError for "triton"
    while a graph is captured.
    """
    if kernel not in ("auto", *KERNELS):
        raise ValueError(f"kernel must be auto, {', '.join(KERNELS)} or reference, got {kernel!r}")
    parts: dict[tuple[str, torch.device, torch.dtype], list[Tensor]] = {}
    for weight in weights:
        parts.setdefault((choose(weight, kernel), weight.device, weight.dtype), []).append(weight)
    return [make(chosen, part) for (chosen, _, _), part in parts.items()]


def choose(weight: Tensor, kernel: str) -> str:
    """One of KERNELS for a weight with a gradient."""
    if kernel == "auto":
        return "batched" if weight.device.type == "cpu" else "grouped"
    if kernel == "triton" and (obstacle := why_not_triton(weight)):
        raise ValueError(f"kernel 'triton' does not serve a weight of shape {tuple(weight.shape)}: {obstacle}")
    return kernel


def make(kernel: str, weights: list[Tensor]) -> Form:
    if kernel == "triton":
        from normloss.regularizers.norm_loss_triton import FilterTable  # needs triton

        return FilterTable(weights)
    return FilterBatches(weights) if kernel == "batched" else FilterGroups(weights)


def why_not_triton(weight: Tensor) -> str:
    """What keeps a weight with a gradient from the Triton kernel; "" for nothing."""
    if weight.device.type != "cuda":
        return f"it is on {weight.device.type}, not cuda"
    if weight.dtype != torch.float32:
        return f"it is {weight.dtype}, not torch.float32"
    if not set(memory_formats(weight)) & set(memory_formats(weight.grad)):
        return f"its strides are {weight.stride()}, its gradient's {weight.grad.stride()}"
    return why_no_triton_on(weight.device)


@cache
def why_no_triton_on(device: torch.device) -> str:
    if find_spec("triton") is None:
        return "triton is not installed"
    if torch.cuda.get_device_capability(device) < (7, 0):
        return f"triton needs compute capability 7.0, {torch.cuda.get_device_name(device)} has less"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "triton needs a C compiler"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "triton needs Python's headers"
    return ""
