"""The micro-batches of a step's batch, and their shares among processes. Without torch."""

from typing import NamedTuple


def micro_batches(images: int, size: int | None) -> list[tuple[int, int]]:
    """Return (first, last excluded) of each slice of a batch that shares batch-norm statistics.

    A last slice of a single image, which has none, joins the one before.
    """
    size = size or images
    starts = list(range(0, images, size))
    if len(starts) > 1 and images - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], images], strict=True))


class Part(NamedTuple):
    """This process's place among those that share out a run's micro-batches."""

    rank: int
    world: int

    def of(self, every: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], bool]:
        """Return this process's micro-batches; the first of all, and True, where a short batch leaves it none."""
        share = -(-len(every) // self.world)
        own = every[self.rank * share : (self.rank + 1) * share]
        return (own, False) if own else (every[:1], True)

    def images(self, images: int, size: int | None) -> slice:
        """Return the slice of a batch of so many images that this process steps on."""
        own, _ = self.of(micro_batches(images, size))
        return slice(own[0][0], own[-1][1])
