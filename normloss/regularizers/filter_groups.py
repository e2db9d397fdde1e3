"""Filters of equal length in one matrix, whichever weight they are of: few operations serve a network of any depth."""

from collections.abc import Iterator

import torch
from torch import Tensor

from normloss.functional import TINY

FORMATS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)
SCRATCH = 2**18  # elements: 1 MiB of float32, about what a core's cache holds


def memory_formats(weight: Tensor) -> list[torch.memory_format]:
    """Those a weight (n, ...) is dense in; in each of them a filter is one stretch of memory, filter after filter."""
    return [layout for layout in FORMATS if weight.is_contiguous(memory_format=layout)]


def shaped_like(rows: Tensor, weight: Tensor) -> Tensor:
    """A view of rows (n, p) in the shape of `weight` (n, ...), and in its order in memory where that is dense."""
    if memory_formats(weight):
        return rows.as_strided(weight.shape, weight.stride(), rows.storage_offset())
    return rows.view(weight.shape)


def copies_in(W: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """Views of W (rows, p), one for each weight, to copy them to: a norm does not mind the order within a filter."""
    parts = W.split([len(weight) for weight in weights])
    return [shaped_like(part, weight) for part, weight in zip(parts, weights, strict=True)]


def by_length(weights: list[Tensor]) -> dict[int, list[Tensor]]:
    """The weights by the length p of their filters: 5 groups for ResNet110, 9 for WRN-28-10, 11 for ResNet-50."""
    groups: dict[int, list[Tensor]] = {}
    for weight in weights:
        groups.setdefault(weight[0].numel(), []).append(weight)
    return groups


def norms_to_coefficients(r: Tensor, lam: float) -> None:
    """2 lam (1 - 1/r) in place."""
    kept = r.clamp_min(TINY)
    torch.sub(kept, 1, out=r).div_(kept).mul_(2 * lam)


class FilterGroups:
    """Norm loss on copies of the weights, stacked by filter length: one W (rows, p) a group, on any device.

    Two operations a group and six more. The copies are in float32 at least: the memory of the weights once more.

    weights: of one device and dtype, with gradients.
    """

    def __init__(self, weights: list[Tensor]) -> None:
        groups = by_length(weights)
        device, dtype = weights[0].device, torch.promote_types(weights[0].dtype, torch.float32)
        rows = [sum(len(weight) for weight in group) for group in groups.values()]
        self.weights = [weight for group in groups.values() for weight in group]
        self.r = torch.empty(sum(rows), dtype=dtype, device=device)  # norms, then coefficients
        self.groups = [
            (torch.empty(len(r), p, dtype=dtype, device=device), r)
            for p, r in zip(groups, self.r.split(rows), strict=True)
        ]
        self.copies: list[Tensor] = []
        for (W, _), group in zip(self.groups, groups.values(), strict=True):
            self.copies += copies_in(W, group)

    def add_norm_loss(self, lam: float) -> None:
        """Add 2 lam (1 - 1/|w|) w to the gradient of each filter w, 0 to that of a zero filter (equation 11)."""
        torch._foreach_copy_(self.copies, self.weights)
        for W, r in self.groups:
            torch.linalg.vector_norm(W, dim=1, out=r)
        norms_to_coefficients(self.r, lam)
        for W, r in self.groups:
            W.mul_(r[:, None])
        torch._foreach_add_([weight.grad for weight in self.weights], self.copies)


class FilterBatches:
    """The same where launches are cheap and memory is slow, on a CPU: half the reads and writes of FilterGroups.

    Small weights are copied to a scratch that stays in cache, for their norms only; a large one is read where it lies.
    The gradients take weight times coefficient by broadcasting, which on a GPU would be a launch a weight.

    weights: of one device and dtype, with gradients.
    """

    def __init__(self, weights: list[Tensor]) -> None:
        groups = by_length(weights)
        device, dtype = weights[0].device, torch.promote_types(weights[0].dtype, torch.float32)
        self.weights = [weight for group in groups.values() for weight in group]
        counts = [len(weight) for weight in self.weights]
        self.r = torch.empty(sum(counts), dtype=dtype, device=device)  # norms, then coefficients
        self.coefficients = [
            r.view(-1, *[1] * (weight.ndim - 1)) for r, weight in zip(self.r.split(counts), self.weights, strict=True)
        ]
        batches = [(p, batch) for p, group in groups.items() for batch in filled(group, SCRATCH // p)]
        rows = [sum(len(weight) for weight in batch) for _, batch in batches]
        scratch = torch.empty(SCRATCH, dtype=dtype, device=device)
        self.large: list[tuple[Tensor, Tensor]] = []  # weight, norms
        self.small: list[tuple[list[Tensor], list[Tensor], Tensor, Tensor]] = []  # copies, weights, all copies, norms
        for (p, batch), r in zip(batches, self.r.split(rows), strict=True):
            if len(batch) == 1:
                self.large.append((batch[0], r))
            else:
                W = scratch[: len(r) * p].view(-1, p)
                self.small.append((copies_in(W, batch), batch, W, r))

    def add_norm_loss(self, lam: float) -> None:
        """Add 2 lam (1 - 1/|w|) w to the gradient of each filter w, 0 to that of a zero filter (equation 11)."""
        for weight, r in self.large:
            torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.ndim)), dtype=r.dtype, out=r)
        for copies, weights, W, r in self.small:
            torch._foreach_copy_(copies, weights)
            torch.linalg.vector_norm(W, dim=1, out=r)
        norms_to_coefficients(self.r, lam)
        torch._foreach_addcmul_([weight.grad for weight in self.weights], self.weights, self.coefficients)


def filled(weights: list[Tensor], rows: int) -> Iterator[list[Tensor]]:
    """Runs of the weights with at most `rows` filters together; a weight with more is a run of its own."""
    batch: list[Tensor] = []
    for weight in weights:
        if batch and sum(map(len, batch)) + len(weight) > rows:
            yield batch
            batch = []
        batch.append(weight)
    yield batch
