"""Soft terms: lam times a penalty on the weights, added to the gradient in closed form before the step."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from normloss import functional
from normloss.regularizers.base import Layers, Regularizer, select_layers


def rows(weight: Tensor) -> Tensor:
    """The filter matrix W (n, p) of a weight (n, ...); a vector is one row."""
    return weight.flatten(1) if weight.ndim > 1 else weight.unsqueeze(0)


class Penalty(Regularizer, ABC):
    """lam * sum over weights of penalty(W); before_step adds lam * penalty_grad(W) to each .grad.

    A weight without a gradient is left alone, as torch's optimizers leave it. The closed form is exact in
    float32 under autocast, needs no graph, and counts once however many micro-batches a step has.
    """

    weights: list[nn.Parameter]  # each of shape (n, ...), one filter a row

    def __init__(self, model: nn.Module, *, lam: float, layers: Layers = "conv+linear") -> None:
        super().__init__(model, lam=lam)
        self.weights = [module.weight for module in select_layers(model, layers).values()]

    @abstractmethod
    def penalty(self, W: Tensor) -> Tensor:
        """The penalty of one weight, W (n, p), without lam."""

    @abstractmethod
    def penalty_grad(self, W: Tensor) -> Tensor:
        """Its gradient, (n, p)."""

    def value(self) -> Tensor:
        return self.lam * torch.stack([self.penalty(rows(weight)) for weight in self.weights]).sum()

    @torch.no_grad()
    def before_step(self) -> None:
        if self.lam == 0:
            return
        for weight in self.weights:
            if weight.grad is not None:
                weight.grad.add_(self.penalty_grad(rows(weight)).view_as(weight), alpha=self.lam)


class NormLoss(Penalty):
    """Norm loss, the paper's method: pulls every filter's norm towards one.

    lam * sum over filters of (1 - |w|)^2, gradient 2 lam (1 - 1/|w|) w  (equations 7, 8, 11, 12).

    lam: 1e-2 (ResNet110 on both CIFARs, WRN-28-10 on CIFAR-10), 1e-3 (WRN-28-10 on CIFAR-100), 1e-4 (ImageNet).
    layers: as in select_layers; one-dimensional tensors are never included. Summed over filters and layers, so
    the pull on a filter does not depend on the size of the network. It replaces weight decay: give the optimizer none.
    Raises ValueError for lam < 0 and where no layer matches.
    """

    def penalty(self, W: Tensor) -> Tensor:
        return functional.norm_loss(W)

    def penalty_grad(self, W: Tensor) -> Tensor:
        return functional.norm_loss_grad(W)


class WeightDecay(Penalty):
    """Weight decay as a penalty: lam * sum w^2, gradient 2 lam w  (equations 9, 10).

    half: lam/2 * sum w^2, gradient lam w, so that lam is torch.optim.SGD's weight_decay (README, D1).
    layers: "all" decays every parameter, biases and batch norm included, as fb.resnet.torch and
    wide-resnet do; otherwise the weights of the selected layers.
    Raises ValueError for lam < 0 and where no layer matches.
    """

    def __init__(self, model: nn.Module, *, lam: float, layers: Layers = "all", half: bool = False) -> None:
        Regularizer.__init__(self, model, lam=lam)
        selected = (module.weight for module in select_layers(model, layers).values()) if layers != "all" else None
        self.weights = list(selected or model.parameters())
        self.factor = 0.5 if half else 1.0

    def penalty(self, W: Tensor) -> Tensor:
        return self.factor * functional.weight_decay(W)

    def penalty_grad(self, W: Tensor) -> Tensor:
        return self.factor * functional.weight_decay_grad(W)
