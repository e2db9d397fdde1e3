"""What fb.resnet.torch does to a crop, batched on the device: colour jitter, lighting and flip, a draw an image.

Draws come from a CPU generator, so that they are equal on every device; they go over without waiting for it.
Shapes: B images, S = size.
"""

import torch
from torch import Tensor

LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
# Principal components of ImageNet's colours: fb.resnet.torch datasets/imagenet.lua
EIGENVALUES = torch.tensor([0.2175, 0.0188, 0.0045])
EIGENVECTORS = torch.tensor(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)  # a component a column


def color_jitter(x: Tensor, strength: float, g: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation of x (B, 3, S, S) in 0..1, each by its own factor an image.

    Each blends the image with a target, a x + (1 - a) t, a = U(1 - strength, 1 + strength): t is black, the mean
    grey, or the grey image. The result may leave 0..1, as in fb.resnet.torch; since nothing is clamped the three
    commute, and fb's random order of them changes nothing.
    """
    factors = 1 + strength * (2 * torch.rand(3, len(x), 1, 1, 1, generator=g) - 1)
    brightness, contrast, saturation = factors.to(x.device, non_blocking=True)  # each (B, 1, 1, 1)
    grey = (x * LUMA.to(x.device, non_blocking=True)).sum(1, keepdim=True)  # (B, 1, S, S)
    x = torch.lerp(grey, x, saturation)
    x = torch.lerp(grey.mean((2, 3), keepdim=True), x, contrast)
    return brightness * x


def lighting(x: Tensor, sigma: float, g: torch.Generator) -> Tensor:
    """x (B, 3, S, S) shifted an image along the principal colours: x + sum_k N(0, sigma) eigenvalue_k v_k."""
    alpha = sigma * torch.randn(len(x), 3, generator=g)
    shift = ((alpha * EIGENVALUES) @ EIGENVECTORS.T).view(-1, 3, 1, 1)
    return x + shift.to(x.device, non_blocking=True)


def random_flip(x: Tensor, probability: float, g: torch.Generator) -> Tensor:
    """x (B, 3, S, S), each image mirrored left to right with this probability."""
    flip = (torch.rand(len(x), 1, 1, 1, generator=g) < probability).to(x.device, non_blocking=True)
    return torch.where(flip, x.flip(3), x)
