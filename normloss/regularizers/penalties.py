"""Soft terms: lam times a penalty on the weights, added to the gradient in closed form before the step."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from normloss import functional
from normloss.regularizers.base import Layers, Regularizer, plain_weights, refuse_reparametrized, select_layers
from normloss.regularizers.stacked import Stacks, captured, wide


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
        self.modules = select_layers(model, layers)
        self.weights = plain_weights(model, layers)

    @abstractmethod
    def penalty(self, W: Tensor) -> Tensor:
        """The penalty of one weight, W (n, p), without lam."""

    def penalty_grad(self, W: Tensor) -> Tensor:
        """Its gradient, (n, p): autograd's, unless a method knows a closed form."""
        with torch.enable_grad():
            V = W.detach().requires_grad_()
            return torch.autograd.grad(self.penalty(V), V)[0]

    def value(self) -> Tensor:
        return self.lam * torch.stack([self.penalty(rows(weight)) for weight in self.weights]).sum()

    @torch.no_grad()
    def before_step(self) -> None:
        if self.lam == 0:
            return
        refuse_reparametrized(self.modules)  # since this was built
        weights = [weight for weight in self.weights if weight.grad is not None]
        if weights:
            self.add_to_gradients(weights)

    def add_to_gradients(self, weights: list[nn.Parameter]) -> None:
        """One weight after another: the readable form; a method may override it by one of fewer operations."""
        for weight in weights:
            weight.grad.add_(self.penalty_grad(rows(weight)).view_as(weight), alpha=self.lam)


class NormLoss(Penalty):
    """Norm loss, the paper's method: pulls every filter's norm towards one.

    lam * sum over filters of (1 - |w|)^2, gradient 2 lam (1 - 1/|w|) w  (equations 7, 8, 11, 12).

    lam: 1e-2 (ResNet110 on both CIFARs, WRN-28-10 on CIFAR-10), 1e-3 (WRN-28-10 on CIFAR-100), 1e-4 (ImageNet).
    layers: as in select_layers; one-dimensional tensors are never included. Summed over filters and layers, so
    the pull on a filter does not depend on the size of the network. It replaces weight decay: give the optimizer none.
    Raises ValueError for lam < 0 and where no layer matches.
    """

    def __init__(self, model: nn.Module, *, lam: float, layers: Layers = "conv+linear") -> None:
        super().__init__(model, lam=lam, layers=layers)
        self.kept: list[tuple[Stacks, list[nn.Parameter]]] = []
        self.kept_for: list[tuple] = []

    def penalty(self, W: Tensor) -> Tensor:
        return functional.norm_loss(W)

    def penalty_grad(self, W: Tensor) -> Tensor:
        return functional.norm_loss_grad(W)

    def add_to_gradients(self, weights: list[nn.Parameter]) -> None:
        """All weights of a device and dtype at once; the inherited form, one after another, is the readable one."""
        for stacks, part in self.stacks_of(weights):
            stacks.add_norm_loss([weight.grad for weight in part], self.lam)

    def stacks_of(self, weights: list[nn.Parameter]) -> list[tuple[Stacks, list[nn.Parameter]]]:
        """Kept while the weights stay; what a CUDA graph captures is made within it, in memory of its own."""
        if weights and captured(weights[0]):
            return made_of(weights)
        now = [(id(weight), weight.device, weight.dtype, weight.stride()) for weight in weights]
        if self.kept_for != now:
            self.kept, self.kept_for = made_of(weights), now
        return self.kept


def made_of(weights: list[nn.Parameter]) -> list[tuple[Stacks, list[nn.Parameter]]]:
    parts: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
    for weight in weights:
        parts.setdefault((weight.device, weight.dtype), []).append(weight)
    return [(Stacks(part), part) for part in parts.values()]


class WeightDecay(Penalty):
    """Weight decay as a penalty: lam * sum w^2, gradient 2 lam w  (equations 9, 10).

    half: lam/2 * sum w^2, gradient lam w, so that lam is torch.optim.SGD's weight_decay (README, D1).
    layers: "all" decays every parameter, biases and batch norm included, as fb.resnet.torch and
    wide-resnet do; otherwise the weights of the selected layers.
    Raises ValueError for lam < 0 and where no layer matches.
    """

    def __init__(self, model: nn.Module, *, lam: float, layers: Layers = "all", half: bool = False) -> None:
        Regularizer.__init__(self, model, lam=lam)
        self.modules = {} if layers == "all" else select_layers(model, layers)
        self.weights = list(model.parameters()) if layers == "all" else plain_weights(model, layers)
        self.factor = 0.5 if half else 1.0

    def penalty(self, W: Tensor) -> Tensor:
        return self.factor * functional.weight_decay(W)

    def penalty_grad(self, W: Tensor) -> Tensor:
        return self.factor * functional.weight_decay_grad(W)

    def add_to_gradients(self, weights: list[nn.Parameter]) -> None:
        torch._foreach_add_([weight.grad for weight in weights], weights, alpha=2 * self.factor * self.lam)


class SO(Penalty):
    """Soft orthogonality [14]: lam |Gram residual|_F^2, gradient 4 lam (W W' - I) W. Authors: lam 1e-2, 1e-6."""

    def penalty(self, W: Tensor) -> Tensor:
        return functional.so(W)

    def penalty_grad(self, W: Tensor) -> Tensor:
        return functional.so_grad(W)


class DSO(SO):
    """Double soft orthogonality [14], |W W' - I|^2 + |W' W - I|^2: SO with twice lam, but for a constant."""

    def penalty(self, W: Tensor) -> Tensor:
        return 2 * functional.so(W) + abs(W.shape[0] - W.shape[1])

    def penalty_grad(self, W: Tensor) -> Tensor:
        return 2 * functional.so_grad(W)


class MC(Penalty):
    """Mutual coherence [14]: lam times the largest |entry| of W W' - I."""

    def penalty(self, W: Tensor) -> Tensor:
        return functional.mc(W)

    def penalty_grad(self, W: Tensor) -> Tensor:
        return functional.mc_grad(W)


class SRIP(Penalty):
    """Spectral restricted isometry property [14]: lam sigma(Gram residual)^2.

    steps: as its authors run it, |A v|^2 with v from a fresh uniform start and `steps` products with the residual A
    (theirs: 2), gradient through all of them; an underestimate of sigma^2. None: converged, by an eigendecomposition.
    value() is always the converged penalty. Draws from torch's default generator of the device.
    """

    def __init__(self, model: nn.Module, *, lam: float, layers: Layers = "conv+linear", steps: int | None = 2) -> None:
        super().__init__(model, lam=lam, layers=layers)
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise ValueError(f"steps must be at least 1, or None for the converged penalty, got {steps}")
        self.steps = steps

    @property
    def capturable(self) -> bool:
        return self.steps is not None  # the host checks an eigendecomposition

    def penalty(self, W: Tensor) -> Tensor:
        return functional.srip(W)

    def penalty_grad(self, W: Tensor) -> Tensor:
        if self.steps is None:
            return functional.srip_grad(W)
        with torch.enable_grad():
            V = W.detach().to(wide(W.dtype)).requires_grad_()
            b = torch.rand(min(V.shape), dtype=V.dtype, device=V.device)
            return torch.autograd.grad(functional.srip_power(V, b, self.steps), V)[0].to(W.dtype)


class SpectralNormPenalty(Penalty):
    """Spectral-norm regularization [27]: lam/2 sigma_1^2, gradient lam sigma_1 u_1 v_1'.

    One power step a training step; the vector u of each weight is kept between steps, as its authors do, with u and v
    normalised: their Algorithm 1, taken literally, gives sigma^2 u v'. lam: 0.01 in [27], in place of weight decay.
    """

    def __init__(self, model: nn.Module, *, lam: float, layers: Layers = "conv+linear") -> None:
        super().__init__(model, lam=lam, layers=layers)
        drawn = [torch.randn_like(rows(weight)[:, 0].to(wide(weight.dtype))).detach() for weight in self.weights]
        self.u = [u / u.norm() for u in drawn]  # (n,) each

    def penalty(self, W: Tensor) -> Tensor:
        return functional.spectral_norm(W)

    def penalty_grad(self, W: Tensor) -> Tensor:
        return functional.spectral_norm_grad(W)

    @torch.no_grad()
    def before_step(self) -> None:
        if self.lam == 0:
            return
        refuse_reparametrized(self.modules)
        for k, weight in enumerate(self.weights):
            if weight.grad is not None:
                sigma, u, v = functional.power_step(rows(weight), self.u[k])
                self.u[k].copy_(u)  # in place: a captured graph reads where it was
                gradient = sigma * torch.outer(u, v)
                weight.grad.add_(gradient.view_as(weight).to(weight.dtype), alpha=self.lam)

    def state_dict(self) -> dict[str, Any]:
        return {"u": list(self.u)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for mine, theirs in zip(self.u, state["u"], strict=True):
            mine.copy_(theirs)
