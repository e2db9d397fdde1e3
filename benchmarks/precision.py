"""The distance of training in a GPU's precisions from float32, on a CPU: operands rounded as tensor cores round them.

Ten steps of ResNet20 on the digits, at 0.01, the rate that ResNet110 is warmed up with. Deviation:
|W - W32| / |W32 - W0| over all weights, the distance from the float32 run as a share of the way that it has come.
For scale: float32 itself, with the sums of convolutions in another order.
"""

from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.forms import vector
from benchmarks.steps import StepLoop, config
from benchmarks.timing import row
from normloss import data

STEPS, RATE = 10, 0.01
OVERRIDES = ["dataset=digits", "model=resnet20", "recipe=digits_resnet8", "reg=nl", "device=cpu"]
PRODUCTS = ("convolution", "convolution_backward", "mm", "addmm", "bmm")  # what runs on tensor cores
FLOAT32, TF32, BF16 = 23, 10, 7  # bits of the mantissa


class Rounded(TorchDispatchMode):
    """Rounds the operands of convolutions and matrix products to so many bits of mantissa; sums stay in float32."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.name().removeprefix("aten::").split(".")[0] in PRODUCTS:
            args = [rounded(x, self.bits) if getattr(x, "dtype", None) == torch.float32 else x for x in args]
        return function(*args, **(kwargs or {}))


def rounded(x: Tensor, bits: int) -> Tensor:
    """Round float32 x to `bits` bits of mantissa, ties to even."""
    dropped = FLOAT32 - bits
    whole = x.clone().view(torch.int32)
    half = (1 << (dropped - 1)) - 1 + ((whole >> dropped) & 1)
    return ((whole + half) & -(1 << dropped)).view(torch.float32)


def weights_after(bits: int, layout: torch.memory_format = torch.channels_last) -> list[Tensor]:
    """Return all weights as one vector, before and after each of the first steps."""
    cfg, cpu = config(*OVERRIDES), torch.device("cpu")
    torch.manual_seed(0)
    loop = StepLoop(cfg, cpu, data.build(cfg, cpu))
    loop.model.to(memory_format=layout)
    loop.optimizer.param_groups[0]["lr"] = RATE
    path = [vector(loop.model.parameters())]
    for x, y in islice(loop.batches, STEPS):
        with nullcontext() if bits == FLOAT32 else Rounded(bits):
            loop.executor.step(x.contiguous(memory_format=layout), y)
        path.append(vector(loop.model.parameters()))
    return path


def deviations() -> dict[str, list[float]]:
    """Return the deviation after each step of float32 in another order, TF32 and bfloat16."""
    start, *path = weights_after(FLOAT32)
    others = {
        "another order": weights_after(FLOAT32, torch.contiguous_format),
        "tf32": weights_after(TF32),
        "bf16": weights_after(BF16),
    }
    return {
        name: [float((w - v).norm() / (v - start).norm()) for v, w in zip(path, other[1:], strict=True)]
        for name, other in others.items()
    }


def measure(blocks: int = 5) -> list[dict[str, Any]]:
    """Blocks do not matter: nothing is timed."""
    return [
        row(f"deviation of {name} after step {step}", 100 * path[step - 1], "%")
        for name, path in deviations().items()
        for step in (1, STEPS)
    ]
