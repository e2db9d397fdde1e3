"""Norm loss on all weights at once: filters of equal length are stacked in one matrix, whichever weight they are of.

Few operations serve a network of any depth, and nothing is read on the host.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from normloss.functional import TINY

FORMATS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)
SCRATCH = 2**18  # elements: 1 MiB of float32, about what a core's cache holds
HUGE = 1e38  # a norm beyond it counts as this: inf / inf is no coefficient


class Stacks:
    """Norm loss of some weights of one device and dtype, each (n, ...) with one filter for each index of axis 0.

    On a CPU, where launches are cheap and memory is slow, small weights are copied to a scratch that stays in cache,
    for their norms only, a large one is read where it lies, and the gradients take weight times coefficient by
    broadcasting. Elsewhere that would be a launch for each weight: there the copies are kept, scaled and added, in
    three operations for each length of filters and five more.
    """

    def __init__(self, weights: list[Tensor]) -> None:
        self.on_cpu = on_cpu(weights[0])
        groups = by_length(weights)
        self.order = [k for group in groups.values() for k in group]
        self.weights = [weights[k] for k in self.order]
        counts = [len(weight) for weight in self.weights]
        self.r = weights[0].new_empty(sum(counts), dtype=wide(weights[0].dtype))  # norms, then coefficients
        self.coefficients = [
            r.view(-1, *[1] * (weight.ndim - 1)) for r, weight in zip(self.r.split(counts), self.weights, strict=True)
        ]
        scratch = self.r.new_empty(SCRATCH if self.on_cpu else 0)
        self.alone: list[tuple[Tensor, Tensor]] = []  # weight, norms
        self.stacks: list[tuple[list[Tensor], list[Tensor], Tensor, Tensor]] = []  # copies, weights, W (rows, p), norms
        start = 0
        for p, group in groups.items():
            for batch in filled([weights[k] for k in group], SCRATCH // p if self.on_cpu else None):
                rows = sum(map(len, batch))
                r = self.r[start : start + rows]
                start += rows
                if self.on_cpu and len(batch) == 1:
                    self.alone.append((batch[0], r))
                else:
                    W = scratch[: rows * p].view(rows, p) if self.on_cpu else self.r.new_empty(rows, p)
                    self.stacks.append((copies_in(W, batch), batch, W, r))

    def add_norm_loss(self, gradients: list[Tensor], lam: float | Tensor) -> None:
        """Add 2 lam (1 - 1/|w|) w to the gradient of each filter w, 0 where |w| <= TINY (equation 11).

        gradients: of the weights, in the order in which these were given.
        """
        for weight, r in self.alone:
            torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.ndim)), dtype=r.dtype, out=r)
        for copies, weights, W, r in self.stacks:
            torch._foreach_copy_(copies, weights)
            torch.linalg.vector_norm(W, dim=1, out=r)
        kept = torch.threshold(self.r, TINY, 1).clamp_max_(HUGE)  # a zero filter counts as one of norm 1: no pull
        torch.sub(kept, 1, out=self.r).div_(kept).mul_(2 * lam)
        gradients = [gradients[k] for k in self.order]
        if self.on_cpu:
            torch._foreach_addcmul_(gradients, self.weights, self.coefficients)
        else:
            for _, _, W, r in self.stacks:
                W.mul_(r[:, None])
            torch._foreach_add_(gradients, [copy for copies, *_ in self.stacks for copy in copies])


def on_cpu(weight: Tensor) -> bool:
    return weight.device.type == "cpu"


def captured(weight: Tensor) -> bool:
    """Return whether a CUDA graph is being captured now; without a driver CUDA must not even be asked."""
    return weight.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the precision that weights of this type are computed with: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def by_length(weights: list[Tensor]) -> dict[int, list[int]]:
    """Return the positions of the weights with filters of each length p: 5 groups for ResNet110, 11 for ResNet-50."""
    groups: dict[int, list[int]] = {}
    for k, weight in enumerate(weights):
        groups.setdefault(weight.numel() // len(weight), []).append(k)
    return groups


def filled(weights: list[Tensor], rows: int | None) -> Iterator[list[Tensor]]:
    """Yield batches of the weights with at most `rows` filters together; a weight with more is a batch of its own."""
    batch: list[Tensor] = []
    for weight in weights:
        if batch and rows is not None and sum(map(len, batch)) + len(weight) > rows:
            yield batch
            batch = []
        batch.append(weight)
    yield batch


def copies_in(W: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """Return views of W (rows, p), one for each weight, to copy them to; a norm ignores the order within a filter."""
    parts = W.split([len(weight) for weight in weights])
    return [shaped_like(part, weight) for part, weight in zip(parts, weights, strict=True)]


def shaped_like(rows: Tensor, weight: Tensor) -> Tensor:
    """Return a view of rows (n, p) in the shape of `weight` (n, ...), in its order in memory where that is dense."""
    if any(weight.is_contiguous(memory_format=layout) for layout in FORMATS):  # a filter is one stretch of memory
        return rows.as_strided(weight.shape, weight.stride(), rows.storage_offset())
    return rows.view(weight.shape)
