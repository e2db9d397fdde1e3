"""How a step's batch is cut into micro-batches, and these are shared out among processes. Without torch."""

from typing import NamedTuple


def micro_batches(images: int, size: int | None) -> list[tuple[int, int]]:
    """First and last (excluded) image of each slice of a batch that shares batch-norm statistics; a last slice of one
    image, which has none, joins the one before."""
    size = size or images
    starts = list(range(0, images, size))
    if len(starts) > 1 and images - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], images], strict=True))


class Part(NamedTuple):
    """Which of the processes that share out a run's micro-batches this is."""

    rank: int
    world: int

    def of(self, every: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], bool]:
        """This process's micro-batches; the first of all, and True, where a short batch leaves it none."""
        share = -(-len(every) // self.world)
        own = every[self.rank * share : (self.rank + 1) * share]
        return (own, False) if own else (every[:1], True)

    def images(self, images: int, size: int | None) -> slice:
        """Those of a batch of so many images that this process steps on."""
        own, _ = self.of(micro_batches(images, size))
        return slice(own[0][0], own[-1][1])
