"""Random streams that depend on (seed, epoch, ...) only, not on what ran before."""

import numpy as np
import torch

from normloss.config import steps_per_epoch as steps_per_epoch  # for data sets, which read their order here


def generator(*key: int) -> torch.Generator:
    """Return a CPU generator for a key such as (seed, epoch): the same stream on every machine and device."""
    # with its length, since SeedSequence takes (seed, epoch) and (seed, epoch, 0) for one
    state = np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))
