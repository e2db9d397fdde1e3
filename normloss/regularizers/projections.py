"""Hard constraints: the step is taken, then the weights are moved back to their set."""

from typing import Any

import torch
from torch import Tensor, nn

from normloss import functional
from normloss.regularizers.base import Layers, Regularizer, plain_weights, refuse_reparametrized, select_layers


class Projection(Regularizer):
    """Weights on a set: moved there when built and after steps; their gradient may be made tangent before."""

    def __init__(self, model: nn.Module, *, layers: Layers) -> None:
        super().__init__(model)
        self.modules = select_layers(model, layers)
        self.weights = plain_weights(model, layers)
        self.project()

    def retract(self, W: Tensor) -> Tensor:
        """The point of the set that W (n, p) is moved to."""
        return functional.row_normalize(W)

    @torch.no_grad()
    def project(self) -> None:
        """Move every weight back to the set now."""
        refuse_reparametrized(self.modules)  # since this was built
        for weight in self.weights:
            weight.copy_(self.retract(weight.flatten(1)).view_as(weight))

    def after_step(self) -> None:
        self.project()


class PBWN(Projection):
    """Projection-based weight normalization [19]: w <- w / |w| every so many steps (equation 6).

    every: steps between projections ("NP" of [19]: 1), or "epoch" ("NP-Epoch"): then after_epoch() projects, to be
    called after testing, since a projection leaves the running statistics of a batch norm behind it wrong by the norm.
    layers: all convolutions in [19]. Weight decay is kept there: build it beside, as the suite's configs do.
    """

    def __init__(self, model: nn.Module, *, layers: Layers = "conv", every: int | str = 1) -> None:
        if every != "epoch" and (not isinstance(every, int) or every < 1):
            raise ValueError(f'every must be a number of steps or "epoch", got {every!r}')
        super().__init__(model, layers=layers)
        self.every, self.steps = every, 0  # steps since the last projection

    @property
    def capturable(self) -> bool:
        return self.every in (1, "epoch")  # otherwise the host counts steps

    def after_step(self) -> None:
        if self.every == "epoch":
            return
        self.steps = (self.steps + 1) % self.every
        if self.steps == 0:
            self.project()

    def after_epoch(self) -> None:
        if self.every == "epoch":
            self.project()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


class Riemannian(Projection):
    """A projection whose gradient is first projected to the tangent space at the weights."""

    def tangent(self, W: Tensor, G: Tensor) -> Tensor:
        """The tangent part of G (n, p) at W (n, p)."""
        return functional.tangent_oblique(W, G)

    @torch.no_grad()
    def before_step(self) -> None:
        for weight in self.weights:
            if weight.grad is not None:
                tangent = self.tangent(weight.flatten(1), weight.grad.flatten(1))
                weight.grad.copy_(tangent.view_as(weight))


class RiemannianOblique(Riemannian):
    """Riemannian SGD on the oblique manifold, unit filters ([19]'s "NP-Reim", [33]): equations 4 and 6.

    The momentum buffer is not transported, as in NormProjection's Spatial_Oblique_EI. Behind a batch norm w . g = 0
    already, and this is PBWN(every=1).
    """

    def __init__(self, model: nn.Module, *, layers: Layers = "conv") -> None:
        super().__init__(model, layers=layers)


class Stiefel(Riemannian):
    """Riemannian SGD on the Stiefel manifold: orthonormal filters, or columns where there are more filters than inputs.

    Euclidean metric, retraction by QR with positive diagonal. [31] constrains linear layers, [32] chooses a manifold
    per layer; here it is all of `layers`.
    """

    capturable = False  # the host waits for a QR decomposition

    def __init__(self, model: nn.Module, *, layers: Layers = "conv") -> None:
        super().__init__(model, layers=layers)

    def tangent(self, W: Tensor, G: Tensor) -> Tensor:
        return functional.tangent_stiefel(W, G)

    def retract(self, W: Tensor) -> Tensor:
        return functional.stiefel_retract(W)
