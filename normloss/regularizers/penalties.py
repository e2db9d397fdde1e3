"""Soft terms: lam times a penalty on the weights, added to the gradient in closed form before the step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from normloss import functional
from normloss.regularizers import hooks
from normloss.regularizers.base import Regularizer, applied, from_state
from normloss.regularizers.coverage import Coverage
from normloss.regularizers.draws import Draws
from normloss.regularizers.kinds import Weight
from normloss.regularizers.selection import Layers
from normloss.regularizers.sharding import local, whole
from normloss.regularizers.stacked import Stacks, captured, on_cpu, wide

Formula = Callable[[Tensor], Tensor]


class Penalty(Regularizer):
    """lam * sum over weights of penalty(W); each before_step() adds lam * penalty_grad(W) to each .grad.

    layers: which weights, see `help(normloss.regularizers.select_layers)`; print(reg) lists them. A weight without a
    gradient is not changed (torch's optimizers do not change it either), nor is a frozen one. The closed form is exact
    in float32 under autocast and needs no graph.
    """

    coverage: Coverage
    formula: tuple[Formula, ...] = ()  # the penalty of W and its gradient in closed form; or override penalty()

    def __init__(self, model: nn.Module, *, lam: float, layers: Layers | None = "conv+linear") -> None:
        super().__init__(model, lam=lam)
        self.coverage = Coverage(model, layers)

    def penalty(self, W: Tensor) -> Tensor:
        """Return the penalty of one weight, W (n, p), without lam."""
        return self.formula[0](W)

    def penalty_grad(self, W: Tensor) -> Tensor:
        """Return its gradient, (n, p): autograd's, unless a method has a closed form."""
        if self.formula:
            return self.formula[1](W)
        with torch.enable_grad():
            V = W.detach().requires_grad_()
            return torch.autograd.grad(self.penalty(V), V)[0]

    def value(self) -> Tensor:
        values = [self.penalty(weight.matrix(applied(weight))) for weight in self.coverage.weights()]
        return self.lam * torch.stack(values).sum() if values else torch.zeros(())

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer | None = None) -> None:
        if self.lam > 0 and (weights := self.to_change(optimizer)):
            self.add_to_gradients(weights)

    def add_to_gradients(self, weights: list[Weight]) -> None:
        """Add the penalty's gradients, one weight after another: the readable form, which a faster one may override."""
        for weight in weights:
            gradient = self.penalty_grad(weight.matrix(local(weight.tensor)))
            for part, rows in weight.rows_of(gradient, local(weight.tensor.grad)):
                part.add_(rows, alpha=self.lam)


class NormLoss(Penalty):
    """Norm loss, the paper's method: pulls every filter's norm towards one.

    lam * sum over filters of (1 - |w|)^2, gradient 2 lam (1 - 1/|w|) w  (equations 7, 8, 11, 12).

    lam: 1e-2 (ResNet110 on both CIFARs, WRN-28-10 on CIFAR-10), 1e-3 (WRN-28-10 on CIFAR-100), 1e-4 (ImageNet).
    layers: a word ("conv+linear", "conv", "linear", "all", "first", "spatial"), names or patterns of layers
    ("blocks.*.mlp.*"), a compiled regular expression, a function of (name, module), or a list of these in which "!x"
    leaves x out; print(reg) shows what is covered. One-dimensional tensors never are. Summed over filters and layers,
    so the pull on a filter does not depend on the size of the network. It replaces weight decay: give the optimizer
    none.

    decoupled: w <- w - lr 2 lam (1 - 1/|w|) w after the step, with the lr of the weight's parameter group, in place of
    a gradient. The paper's form is apt with SGD. Adam and others divide a gradient by its own size, so that a penalty
    in it pulls as hard at lam 1e-2 as at 1: with them take decoupled=True. A norm's distance from one shrinks by
    1 - 2 lr lam in a step: stable for lr lam < 1, without overshoot for lr lam <= 1/2; a step at lr lam >= 1 warns
    once. Works through hook(optimizer) or after_step(optimizer).
    A filter of norm 1e-12 or less counts as zero and is not pulled.
    Ranger21 decouples too, but treats biases and batch norms as one filter each, and as released
    acts on one tensor of each parameter group only; pytorch_optimizer's port mends the latter.

    Raises ValueError for a wrong lam, where no layer matches, for a reparametrized layer, and for a decoupled
    after_step() without its optimizer.
    """

    filterwise = True
    formula = functional.norm_loss, functional.norm_loss_grad

    def __init__(
        self, model: nn.Module, *, lam: float, layers: Layers = "conv+linear", decoupled: bool = False
    ) -> None:
        super().__init__(model, lam=lam, layers=layers)
        self.decoupled = decoupled
        self.kept: list[tuple[Stacks, list[Weight]]] = []
        self.kept_for: list[tuple[Any, ...]] = []
        self.idle: set[int] = set()  # ids of the weights that had no gradient at a decoupled step
        self.lookout: hooks.Lookout | None = None  # for weight decay in addition

    def before_step(self, optimizer: Optimizer | None = None) -> None:
        if self.decoupled:
            self.with_gradients(optimizer)
            self.idle = {id(weight.tensor) for weight in self.trained() if weight.tensor.grad is None}
        else:
            super().before_step(optimizer)
        self.look_for_weight_decay(optimizer)

    def add_to_gradients(self, weights: list[Weight]) -> None:
        """Add to all weights of a device and dtype at once; the inherited form is the readable one."""
        for stacks, part in self.stacks_of(weights):
            stacks.add_norm_loss([view for w in part for view in w.filters(local(w.tensor.grad))], self.lam)

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer | None = None) -> None:
        """If decoupled, move each filter of the optimizer's by the lr of its group."""
        if not self.decoupled:
            return
        if optimizer is None:
            raise ValueError("decoupled NormLoss needs the lr: call after_step(optimizer), or hook(optimizer)")
        self.check_optimizer(optimizer)
        weights = [weight for weight in self.served(optimizer) if id(weight.tensor) not in self.idle]
        self.look_for_weight_decay(optimizer)
        for group in optimizer.param_groups:
            ours = hooks.held([group], weights)
            if ours and self.lam > 0:
                self.check_rate(group["lr"])
                self.pull(ours, group["lr"] * self.lam, getattr(optimizer, "found_inf", None))

    def check_rate(self, lr: float | Tensor) -> None:
        """Warn of a step that takes norms further from one; an lr on a device is not read."""
        readable = not isinstance(lr, Tensor) or (on_cpu(lr) and not torch.compiler.is_compiling())
        if readable and float(lr) * self.lam >= 1:
            self.warn(
                "lr",
                f"decoupled NormLoss takes a step at lr * lam = {float(lr) * self.lam:g}: at 1 or more norms do not"
                " approach one; give a smaller lam, 0.05 / lr for example",
            )

    def pull(self, weights: list[Weight], step: float | Tensor, found_inf: Tensor | None) -> None:
        """Take w <- w - step 2 (1 - 1/|w|) w for each filter, unless GradScaler has a fused optimizer skip the step."""
        for stacks, part in self.stacks_of(weights):
            taken = 1 if found_inf is None else 1 - found_inf.to(stacks.r.dtype)
            stacks.add_norm_loss([view for w in part for view in w.filters(local(w.tensor))], -step * taken)

    def check_optimizer(self, optimizer: Optimizer) -> None:
        if self.decoupled and isinstance(optimizer, LBFGS):
            raise ValueError(
                "decoupled NormLoss does not go with LBFGS, whose steps rely on the last gradient: leave"
                " decoupled=False"
            )

    def look_for_weight_decay(self, optimizer: Optimizer | None) -> None:
        """Warn of it once: in the optimizer given, else in the one that steps next on a weight of ours."""
        if torch.compiler.is_compiling():
            return
        if optimizer is not None:
            hooks.warn_of_weight_decay(self, optimizer)
        elif self.lookout is None:
            self.lookout = hooks.Lookout(self)
        elif self.lookout.done:
            self.lookout.remove()

    def stacks_of(self, weights: list[Weight]) -> list[tuple[Stacks, list[Weight]]]:
        """Return the stacks of some weights, kept while these stay; a CUDA graph captures its own."""
        if torch.compiler.is_compiling() or captured(weights[0].tensor):
            return made_of(weights)
        parts = [local(weight.parameter) for weight in weights]
        now = [(id(w), w.data_ptr(), w.dtype, w.shape, w.stride()) for w in parts]
        if self.kept_for != now:
            self.kept, self.kept_for = made_of(weights), now
        return self.kept

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"kept": [], "kept_for": [], "lookout": None}


def made_of(weights: list[Weight]) -> list[tuple[Stacks, list[Weight]]]:
    """Return the stacks of the weights of each device and dtype, with these weights."""
    parts: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Weight]]] = {}
    for weight in weights:
        filters = weight.filters(local(weight.tensor.detach()))  # a view of the parameter itself could not be swapped
        if filters[0].numel():  # a process may have no filter of a small layer
            tensors, part = parts.setdefault((weight.tensor.device, weight.tensor.dtype), ([], []))
            tensors += filters
            part.append(weight)
    return [(Stacks(tensors), part) for tensors, part in parts.values()]


class WeightDecay(Penalty):
    """Weight decay as a penalty: lam * sum w^2, gradient 2 lam w  (equations 9, 10).

    half: lam/2 * sum w^2, gradient lam w, so that lam is torch.optim.SGD's weight_decay (D1).
    layers: "all" decays every parameter, biases and batch norm included, as fb.resnet.torch and
    wide-resnet do; otherwise the weights of the selected layers.
    Raises ValueError for lam < 0 and where no layer matches.
    """

    filterwise = True

    def __init__(self, model: nn.Module, *, lam: float, layers: Layers = "all", half: bool = False) -> None:
        super().__init__(model, lam=lam, layers=None if layers == "all" else layers)
        self.factor = 0.5 if half else 1.0

    def penalty(self, W: Tensor) -> Tensor:
        return self.factor * functional.weight_decay(W)

    def penalty_grad(self, W: Tensor) -> Tensor:
        return self.factor * functional.weight_decay_grad(W)

    def add_to_gradients(self, weights: list[Weight]) -> None:
        gradients = [local(weight.tensor.grad) for weight in weights]
        torch._foreach_add_(gradients, [local(w.tensor) for w in weights], alpha=2 * self.factor * self.lam)


class SO(Penalty):
    """Soft orthogonality [14]: lam |Gram residual|_F^2, gradient 4 lam (W W' - I) W. Authors: lam 1e-2, 1e-6."""

    formula = functional.so, functional.so_grad


class DSO(SO):
    """Double soft orthogonality [14], |W W' - I|^2 + |W' W - I|^2: SO with twice lam, but for a constant."""

    def penalty(self, W: Tensor) -> Tensor:
        return 2 * functional.so(W) + abs(W.shape[0] - W.shape[1])

    def penalty_grad(self, W: Tensor) -> Tensor:
        return 2 * functional.so_grad(W)


class MC(Penalty):
    """Mutual coherence [14]: lam times the largest |entry| of W W' - I."""

    formula = functional.mc, functional.mc_grad


class SRIP(Penalty):
    """Spectral restricted isometry property [14]: lam sigma(Gram residual)^2.

    steps: as its authors run it, |A v|^2 with v from a fresh uniform start and `steps` products with the residual A
    (theirs: 2), gradient through all of them; an underestimate of sigma^2. None: converged, by an eigendecomposition.
    value() is always the converged penalty.
    seed: of the draws, which are identical on all processes and independent of torch's generators; None: they come from
    torch's default generator of the device, as in version 0.1.0.
    """

    formula = functional.srip, functional.srip_grad

    def __init__(
        self,
        model: nn.Module,
        *,
        lam: float,
        layers: Layers = "conv+linear",
        steps: int | None = 2,
        seed: int | None = 0,
    ) -> None:
        super().__init__(model, lam=lam, layers=layers)
        self.draws = Draws(seed)
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise ValueError(f"steps must be at least 1, or None for the converged penalty, got {steps}")
        self.steps = steps
        # the host checks an eigendecomposition; a graph captures torch's default generator only
        self.capturable = steps is not None and seed is None

    def penalty_grad(self, W: Tensor) -> Tensor:
        if self.steps is None:
            return super().penalty_grad(W)
        with torch.enable_grad():
            V = W.detach().to(wide(W.dtype)).requires_grad_()
            b = torch.rand(min(V.shape), dtype=V.dtype, device=V.device, generator=self.draws.generator(V.device))
            return torch.autograd.grad(functional.srip_power(V, b, self.steps), V)[0].to(W.dtype)

    def state_dict(self) -> dict[str, Any]:
        return self.draws.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.draws.load_state_dict(state)


class SpectralNormPenalty(Penalty):
    """Spectral-norm regularization [27]: lam/2 sigma_1^2, gradient lam sigma_1 u_1 v_1'.

    One power step a training step; the vector u of each weight is kept between steps, as its authors do, with u and v
    normalised: their Algorithm 1, taken literally, gives sigma^2 u v'. lam: 0.01 in [27], in place of weight decay.
    """

    formula = functional.spectral_norm, functional.spectral_norm_grad

    def __init__(self, model: nn.Module, *, lam: float, layers: Layers = "conv+linear", seed: int | None = 0) -> None:
        super().__init__(model, lam=lam, layers=layers)
        self.draws = Draws(seed)
        self.u: dict[str, Tensor] = {}  # (n,) each, by the name of its weight
        for weight in self.coverage.weights():
            self.start_of(weight)

    def start_of(self, weight: Weight) -> Tensor:
        """Return the vector kept for a weight, in its precision and on its device; drawn where none fits."""
        W = weight.matrix(whole(weight.tensor))
        u, dtype = self.u.get(weight.path), wide(W.dtype)
        if u is None or len(u) != len(W):
            u = torch.randn(len(W), dtype=dtype, device=W.device, generator=self.draws.generator(W.device))
            u = u / u.norm()
        self.u[weight.path] = u = u.to(W.device, dtype)
        return u

    def add_to_gradients(self, weights: list[Weight]) -> None:
        for weight in weights:
            start, gradient = self.start_of(weight), local(weight.tensor.grad)
            sigma, u, v = functional.power_step(weight.matrix(local(weight.tensor)), start)
            start.copy_(u)  # in place: a captured graph reads where it was
            for part, rows in weight.rows_of(sigma * torch.outer(u, v), gradient):
                part.add_(rows.to(part.dtype), alpha=self.lam)

    def state_dict(self) -> dict[str, Any]:
        return {"u": {path: u.clone() for path, u in self.u.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        theirs, weights = from_state(state, "u", self), self.coverage.weights()
        if isinstance(theirs, list):  # versions 0.1 and 0.2: in the order of the weights
            theirs = {weight.path: u for weight, u in zip(weights, theirs, strict=False)}
        for weight in weights:
            u, start = theirs.get(weight.path), self.start_of(weight)
            if u is None or u.shape != start.shape:
                raise ValueError(f"SpectralNormPenalty: its state holds no vector of {len(start)} for {weight.path!r}")
            start.copy_(u)
