"""Norm loss in one launch on a GPU: each filter is read once for its norm and again, from cache, for its gradient."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from normloss.functional import TINY
from normloss.regularizers import capture

BLOCK = 1024  # elements of a filter at a time
NOT_READY = (
    "kernel 'triton' needs a step outside before each step of the same weights in the capture of a CUDA graph:"
    ' take one step before the capture or set reg.kernel = "grouped"'
)


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

    A CUDA graph has gradients of its own, at addresses known only during its capture, when no memory may be pinned:
    a step outside readies a table for the next capture, and each replay copies its addresses from pinned memory. Tables
    of captures live as long as this object, which has to outlive the last replay.

    weights: float32, of one device, dense, each with a gradient in its own memory format.
    Raises RuntimeError during a capture.
    """

    def __init__(self, weights: list[Tensor]) -> None:
        device = weights[0].device
        if capture.capturing(device):
            raise RuntimeError(NOT_READY)
        rows = torch.tensor([len(weight) for weight in weights])
        self.weights = weights
        self.lengths = [weight[0].numel() for weight in weights]
        self.firsts = [0, *rows.cumsum(0).tolist()]
        self.weight_of_row = torch.repeat_interleave(torch.arange(len(weights)), rows).to(device)
        self.table = torch.empty(4 * len(weights), dtype=torch.int64, device=device)  # of the steps outside captures
        self.addresses: list[int] = []  # in it
        self.ready: tuple[Tensor, Tensor] | None = None  # pinned memory and table for the next capture
        self.captured: list[tuple[Tensor, Tensor]] = []  # the same, read by every replay

    def add_norm_loss(self, lam: float) -> None:
        """Add 2 lam (1 - 1/|w|) w to the gradient of each filter w, 0 to that of a zero filter (equation 11).

        Raises RuntimeError during the capture of a CUDA graph if no step outside came since the last one captured.
        """
        with torch.cuda.device_of(self.table):
            table = self.table_of_capture() if capture.capturing(self.table.device) else self.table_of_step()
            add_to_filters[(self.firsts[-1],)](
                table, self.weight_of_row, len(self.weights), float(lam), TINY, BLOCK=BLOCK
            )

    def table_of_step(self) -> Tensor:
        pinned = self.table.is_cuda
        addresses = self.look_up()
        if addresses != self.addresses:
            host = torch.tensor(self.content(addresses), pin_memory=pinned)
            self.table.copy_(host, non_blocking=True)  # torch reuses pinned memory only after the copy
            self.addresses = addresses
        if self.ready is None:
            self.ready = torch.empty_like(self.table, device="cpu", pin_memory=pinned), torch.empty_like(self.table)
        return self.table

    def table_of_capture(self) -> Tensor:
        if self.ready is None:
            raise RuntimeError(NOT_READY)
        host, table = self.ready
        self.captured.append(self.ready)
        self.ready = None
        host.copy_(torch.tensor(self.content(self.look_up())))
        table.copy_(host, non_blocking=True)
        return table

    def look_up(self) -> list[int]:
        """Addresses of all weights, then of all gradients."""
        return [weight.data_ptr() for weight in self.weights] + [weight.grad.data_ptr() for weight in self.weights]

    def content(self, addresses: list[int]) -> list[int]:
        return [*addresses, *self.lengths, *self.firsts[:-1]]
