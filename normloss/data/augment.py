"""The augmentation of fb.resnet.torch after the crop, batched on the device: colour jitter, lighting, flip.

One draw per image, from a CPU generator: equal on every device, and copied to it without waiting.
Shapes: B images, S = size.
"""

import torch
from torch import Tensor

LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
# Principal components of ImageNet's colours: fb.resnet.torch datasets/imagenet.lua
EIGENVALUES = torch.tensor([0.2175, 0.0188, 0.0045])
EIGENVECTORS = torch.tensor(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)  # one component per column
Share = tuple[int, slice]  # a batch's images, which are drawn for, and those of them that x holds


def color_jitter(x: Tensor, strength: float, g: torch.Generator, share: Share) -> Tensor:
    """Change brightness, contrast and saturation of x (B, 3, S, S) in 0..1, each image by a factor of its own.

    Each blends the image with a target, a x + (1 - a) t, a = U(1 - strength, 1 + strength): t is black, the mean
    grey, or the grey image. The result may leave 0..1, as in fb.resnet.torch; since nothing is clamped the three
    commute, and fb's random order of them changes nothing.
    """
    images, own = share
    factors = 1 + strength * (2 * torch.rand(3, images, 1, 1, 1, generator=g)[:, own] - 1)
    brightness, contrast, saturation = factors.to(x.device, non_blocking=True)  # each (B, 1, 1, 1)
    grey = (x * LUMA.to(x.device, non_blocking=True)).sum(1, keepdim=True)  # (B, 1, S, S)
    x = torch.lerp(grey, x, saturation)
    x = torch.lerp(grey.mean((2, 3), keepdim=True), x, contrast)
    return brightness * x


def lighting(x: Tensor, sigma: float, g: torch.Generator, share: Share) -> Tensor:
    """Shift each image of x (B, 3, S, S) along the principal colours: x + sum_k N(0, sigma) eigenvalue_k v_k."""
    images, own = share
    alpha = sigma * torch.randn(images, 3, generator=g)[own]
    shift = ((alpha * EIGENVALUES) @ EIGENVECTORS.T).view(-1, 3, 1, 1)
    return x + shift.to(x.device, non_blocking=True)


def random_flip(x: Tensor, probability: float, g: torch.Generator, share: Share) -> Tensor:
    """Mirror each image of x (B, 3, S, S) left to right with this probability."""
    images, own = share
    flip = (torch.rand(images, 1, 1, 1, generator=g)[own] < probability).to(x.device, non_blocking=True)
    return torch.where(flip, x.flip(3), x)
