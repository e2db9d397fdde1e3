"""1,797 handwritten digits that come with the package, for runs without a download. Source and licence: digits.md."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from normloss.config import Digits
from normloss.data.tensors import Split

FILE = Path(__file__).with_name("digits.npz")


def load(cfg: Digits, data_dir: Path) -> tuple[Split, ...]:
    """Return the training (1,437) and test (360) digits, a stratified split that never changes, enlarged from 8x8."""
    splits = []
    with np.load(FILE, allow_pickle=False) as file:
        for part in ("train", "test"):
            small = torch.from_numpy(file[f"{part}_images"][:, None]).float() * (255 / 16)  # (N, 1, 8, 8) of 0..16
            large = F.interpolate(small, size=(cfg.size, cfg.size), mode="bilinear", align_corners=False)
            splits.append(Split(large.round().to(torch.uint8).numpy(), file[f"{part}_labels"].astype(np.int64)))
    return tuple(splits)
