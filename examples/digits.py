"""What the examples share: handwritten digits as tensors, and the table of filter norms before and after."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from normloss.data import digits  # 1,797 images of 8 x 8 that come with the package


def images(size: int = 8, count: int = 512) -> TensorDataset:
    """The first training digits: (1, size, size) with values from 0 to 1, and their labels."""
    with torch.no_grad(), digits.np.load(digits.FILE, allow_pickle=False) as file:
        x, y = file["train_images"][:count], file["train_labels"][:count]
    x = torch.from_numpy(digits.enlarge(x, size)).float() / 255
    return TensorDataset(x, torch.from_numpy(y).long())


def loader(size: int = 8, batch_size: int = 64, **options) -> DataLoader:
    return DataLoader(images(size), batch_size=batch_size, **options)


def network() -> nn.Sequential:
    """A small convolutional network."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def show(when: str, norms: dict[str, Tensor]) -> None:
    """The smallest and the largest filter norm of all layers."""
    every = torch.cat(list(norms.values()))
    print(f"{when}: filter norms from {every.min():.3f} to {every.max():.3f}")
