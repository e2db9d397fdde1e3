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
    with np.load(FILE, allow_pickle=False) as file:
        parts = [(file[f"{part}_images"], file[f"{part}_labels"]) for part in ("train", "test")]
    return tuple(Split(enlarge(images, cfg.size), labels.astype(np.int64)) for images, labels in parts)


def enlarge(images: np.ndarray, size: int) -> np.ndarray:
    """Enlarge (N, 8, 8) with values 0..16 to uint8 (N, 1, size, size) with values 0..255, bilinear."""
    small = torch.from_numpy(images[:, None]).float() * (255 / 16)
    large = F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
    return large.round().to(torch.uint8).numpy()
