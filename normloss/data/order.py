"""Who is drawn when: random streams that depend on (seed, epoch, ...) alone, not on what ran before."""

import numpy as np
import torch


def generator(*key: int) -> torch.Generator:
    """A CPU generator for a key such as (seed, epoch): the same stream on every machine and device."""
    # with its length, since SeedSequence takes (seed, epoch) and (seed, epoch, 0) for one
    state = np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Batches of an epoch: the last one may be short, but one image alone has no batch statistics and is left out."""
    full, rest = divmod(images, batch_size)
    return full + (rest > 1 or (rest == 1 and full == 0))
