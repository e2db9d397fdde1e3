"""Norm loss in one launch on a GPU: each filter is read once for its norm and again, from cache, for its gradient."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from normloss.functional import TINY

BLOCK = 1024  # elements of a filter at a time


@triton.jit
def add_to_filters(table, weight_of_row, weights, lam, tiny, BLOCK: tl.constexpr):
    """One program a filter; table (4, weights): addresses of weight and gradient, filter length, number of row 0."""
    row = tl.program_id(0)
    k = tl.load(weight_of_row + row)
    w = tl.load(table + k).to(tl.pointer_type(tl.float32))
    g = tl.load(table + weights + k).to(tl.pointer_type(tl.float32))
    p = tl.load(table + 2 * weights + k)
    start = (row - tl.load(table + 3 * weights + k)) * p
    squares = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, p, BLOCK):
        j = first + tl.arange(0, BLOCK)
        x = tl.load(w + start + j, mask=j < p, other=0.0)
        squares += x * x
    r = tl.maximum(tl.sqrt(tl.sum(squares, 0)), tiny)
    coefficient = 2 * lam * ((r - 1) / r)
    for first in range(0, p, BLOCK):
        j = first + tl.arange(0, BLOCK)
        x = tl.load(w + start + j, mask=j < p, other=0.0)
        y = tl.load(g + start + j, mask=j < p, other=0.0)
        tl.store(g + start + j, y + coefficient * x, mask=j < p)


class FilterTable:
    """Norm loss on the weights where they lie, through a table of their addresses: no copies, one launch.

    weights: float32, of one device, dense, each with a gradient in its own memory format.
    """

    def __init__(self, weights: list[Tensor]) -> None:
        self.weights = weights
        rows = torch.tensor([len(weight) for weight in weights])
        self.firsts = [0, *rows.cumsum(0).tolist()]
        self.weight_of_row = torch.repeat_interleave(torch.arange(len(weights)), rows).to(weights[0].device)
        self.table: Tensor | None = None
        self.addresses: list[int] = []

    def add_norm_loss(self, lam: float) -> None:
        """Add 2 lam (1 - 1/|w|) w to the gradient of each filter w, 0 to that of a zero filter (equation 11).

        Raises RuntimeError while a CUDA graph is captured if a weight or gradient is not where the step before had it.
        """
        addresses = [weight.data_ptr() for weight in self.weights] + [weight.grad.data_ptr() for weight in self.weights]
        with torch.cuda.device_of(self.weight_of_row):
            if addresses != self.addresses:
                self.look_up(addresses)
            add_to_filters[(self.firsts[-1],)](
                self.table, self.weight_of_row, len(self.weights), float(lam), TINY, BLOCK=BLOCK
            )

    def look_up(self, addresses: list[int]) -> None:
        device = self.weight_of_row.device
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "a gradient has moved during the capture of a CUDA graph:"
                ' keep the gradients (zero_grad(set_to_none=False)) or set reg.kernel = "grouped"'
            )
        lengths = [weight[0].numel() for weight in self.weights]
        table = torch.tensor([*addresses, *lengths, *self.firsts[:-1]], pin_memory=device.type == "cuda")
        self.table = table.to(device, non_blocking=True)  # the pinned memory is reused only after the copy
        self.addresses = addresses
