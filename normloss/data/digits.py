"""scikit-learn's handwritten digits: 1,797 real images that come with the package, for runs without a download."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from normloss.config import Digits
from normloss.data.tensors import Split


def load(cfg: Digits, data_dir: Path) -> tuple[Split, Split]:
    """Training (1,437) and test (360) digits, a stratified split that never changes, enlarged from 8x8."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    grey, labels = load_digits(return_X_y=True)  # (1797, 64) in 0..16
    small = torch.from_numpy(grey).float().view(-1, 1, 8, 8) * (255 / 16)
    large = F.interpolate(small, size=(cfg.size, cfg.size), mode="bilinear", align_corners=False)
    images = large.round().to(torch.uint8).numpy()
    train, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    return tuple(Split(images[part], labels[part].astype(np.int64)) for part in (train, test))
