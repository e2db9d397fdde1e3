"""A small network, its batches, and what one update makes of it by equation 12 in closed form, in float64.

The update is w - lr (g + 2 lam (1 - 1/|w|) w), with g the gradient of the mean loss by autograd.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normloss

LAM, LR = 0.3, 0.1


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def batches(n: int = 3) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 4, generator=g).double(), torch.randint(3, (8,), generator=g)) for _ in range(n)]


def mean_loss(model: nn.Module, micro: list) -> Tensor:
    return sum(F.cross_entropy(model(x), y) for x, y in micro) / len(micro)


def pull(w: Tensor) -> Tensor:
    """The gradient of the norm loss, equation 11; none for a bias."""
    return 2 * LAM * (1 - 1 / w.norm(dim=1, keepdim=True)) * w if w.ndim > 1 else torch.zeros_like(w)


def updated(model: nn.Module, micro: list) -> nn.Module:
    """The network one update later; without micro-batches by the penalty alone."""
    twin = copy.deepcopy(model)
    parameters = list(twin.parameters())
    gradients = torch.autograd.grad(mean_loss(twin, micro), parameters) if micro else [0] * len(parameters)
    with torch.no_grad():
        for p, g in zip(parameters, gradients, strict=True):
            p -= LR * (g + pull(p))
    return twin


def assert_close(a: nn.Module, b: nn.Module, **tolerance: float) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, **(tolerance or {"rtol": 1e-11, "atol": 1e-13}))


def sgd(parameters, **options) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, **{"lr": LR, **options})


def norm_loss(model: nn.Module, **options) -> normloss.NormLoss:
    return normloss.NormLoss(model, **{"lam": LAM, **options})


def backward(model: nn.Module, micro: list) -> None:
    for x, y in micro:
        (F.cross_entropy(model(x), y) / len(micro)).backward()


def with_zero_gradients(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model
