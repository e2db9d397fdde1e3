"""Hard constraints: the step is taken, then the weights are moved back to their set."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from normloss import functional
from normloss.regularizers.base import Regularizer, from_state
from normloss.regularizers.coverage import Coverage
from normloss.regularizers.kinds import Weight
from normloss.regularizers.selection import Layers
from normloss.regularizers.sharding import check_placements, local


class Projection(Regularizer):
    """Weights on a set: moved there when built and after steps; their gradient may be made tangent before.

    A frozen weight is not changed until it is unfrozen.
    """

    coverage: Coverage
    filterwise = True

    def __init__(self, model: nn.Module, *, layers: Layers = "conv") -> None:
        super().__init__(model)
        self.coverage = Coverage(model, layers)
        self.project()

    def retract(self, W: Tensor) -> Tensor:
        """Return the point of the set that W (n, p) is moved to."""
        return functional.row_normalize(W)

    @torch.no_grad()
    def project(self, weights: list[Weight] | None = None) -> None:
        """Move every weight, or those given, back to the set now; a weight on the meta device once it has values."""
        for weight in self.trained() if weights is None else weights:
            check_placements(weight, type(self).__name__, self.filterwise)
            if weight.tensor.is_meta:
                continue
            tensor = local(weight.tensor)
            for part, rows in weight.rows_of(self.retract(weight.matrix(tensor)), tensor):
                part.copy_(rows)

    def after_step(self, optimizer: Optimizer | None = None) -> None:
        self.project(self.served(optimizer))


class PBWN(Projection):
    """Projection-based weight normalization [19]: w <- w / |w| every so many steps (equation 6).

    every: steps between projections ("NP" of [19]: 1), or "epoch" ("NP-Epoch"): then after_epoch() projects, to be
    called after testing, since a projection leaves the running statistics of a batch norm behind it wrong by the norm.
    A filter of norm 1e-12 or less counts as zero and stays as it is. A learning rate of 0 does not stop the projection.
    layers: all convolutions in [19], which keeps weight decay: chain a WeightDecay, as the suite's configs do.
    """

    def __init__(self, model: nn.Module, *, layers: Layers = "conv", every: int | str = 1) -> None:
        if every != "epoch" and (not isinstance(every, int) or every < 1):
            raise ValueError(f'every must be a number of steps or "epoch", got {every!r}')
        super().__init__(model, layers=layers)
        self.every = every
        self.capturable = every in (1, "epoch")  # otherwise the host counts steps
        self.steps: dict[str, int] = {}  # of each weight, since its last projection

    def after_step(self, optimizer: Optimizer | None = None) -> None:
        if self.every == "epoch":
            return
        weights = self.served(optimizer)
        for weight in weights:
            self.steps[weight.path] = (self.steps.get(weight.path, 0) + 1) % int(self.every)
        self.project([weight for weight in weights if self.steps[weight.path] == 0])

    def after_epoch(self) -> None:
        if self.every == "epoch":
            self.project()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": dict(self.steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        steps = from_state(state, "steps", self)
        if isinstance(steps, int):  # version 0.1.0: the same for all
            steps = {weight.path: steps for weight in self.coverage.weights()}
        self.steps = dict(steps)


class Riemannian(Projection):
    """A projection whose gradient is first projected to the tangent space at the weights."""

    def tangent(self, W: Tensor, G: Tensor) -> Tensor:
        """Return the tangent part of G (n, p) at W (n, p)."""
        return functional.tangent_oblique(W, G)

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer | None = None) -> None:
        for weight in self.to_change(optimizer):
            gradient = local(weight.tensor.grad)
            tangent = self.tangent(weight.matrix(local(weight.tensor)), weight.matrix(gradient))
            for part, rows in weight.rows_of(tangent, gradient):
                part.copy_(rows)


class RiemannianOblique(Riemannian):
    """Riemannian SGD on the oblique manifold, unit filters ([19]'s "NP-Reim", [33]): equations 4 and 6.

    With momentum the buffer is left where it is, as in NormProjection's Spatial_Oblique_EI; geoopt and NVIDIA's
    ObliqueSGD keep it in the tangent space, and differ. Behind a batch norm w . g = 0 already: this is PBWN(every=1).
    """


class Stiefel(Riemannian):
    """Riemannian SGD on the Stiefel manifold: orthonormal filters, or columns where there are more filters than inputs.

    Euclidean metric, retraction by QR with positive diagonal. [31] constrains linear layers, [32] chooses a manifold
    per layer; here it is all of `layers`.
    """

    capturable = False  # the host waits for a QR decomposition
    filterwise = False

    def tangent(self, W: Tensor, G: Tensor) -> Tensor:
        return functional.tangent_stiefel(W, G)

    def retract(self, W: Tensor) -> Tensor:
        return functional.stiefel_retract(W)
