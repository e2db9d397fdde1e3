"""The protocol: a regularizer is a constructor and three hook points of a training step.

loss(x, logits)   added to the task loss
before_step()     after the last backward(), before optimizer.step(): penalties add to .grad, each time it is called
after_step()      after optimizer.step(): projections move the weights back to their set
"""

import math
import numbers
import warnings
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from normloss.functional import filter_norms
from normloss.regularizers.coverage import Coverage
from normloss.regularizers.hooks import Hook, held
from normloss.regularizers.kinds import Weight
from normloss.regularizers.sharding import check_placements, reduce_gradient, whole


class Regularizer:
    """No regularization, and the base of every method: all three hook points do nothing.

    model: the raw module, on its device; build the regularizer before the optimizer (a method may add
    parameters) and before torch.compile. lam: regularization factor, at least 0; it may be set later.
    Raises ValueError for a lam that is negative, infinite or no number.
    """

    needs_input_grad = False  # whether loss() differentiates with respect to the input
    capturable = True  # whether a CUDA graph can replay the step: nothing is read on the host, no state is a new tensor
    filterwise = False  # whether the method acts on each filter by itself, and so on the filters that a process has
    coverage: Coverage | None = None  # the weights that the method is about
    hooks: WeakSet[Hook] = WeakSet()  # that are set now
    warned: frozenset[str] = frozenset()  # the subjects of the warnings that were given
    _lam: float

    def __init__(self, model: nn.Module, *, lam: float = 0.0) -> None:
        self.lam = lam

    @property
    def lam(self) -> float:
        return self._lam

    @lam.setter
    def lam(self, lam: float) -> None:
        if isinstance(lam, bool) or not isinstance(lam, numbers.Real | float):
            raise ValueError(f"lam must be a number, got {lam!r}")
        if not 0 <= lam < math.inf:
            raise ValueError(f"lam must be at least 0 and finite, got {lam}")
        self._lam = float(lam)

    def loss(self, x: Tensor, logits: Tensor) -> Tensor | float:
        """Return what the method adds to the task loss of a (micro-)batch; 0.0 for all but the Jacobian penalty."""
        return 0.0

    def before_step(self, optimizer: Optimizer | None = None) -> None:
        """Change the gradients, once for each call: call it once per update, after the last backward().

        A penalty adds its gradient, and warns once where no covered weight has a gradient. Under GradScaler call
        scaler.unscale_(optimizer) first.
        optimizer: change only the gradients of its weights, where several optimizers share the model.
        """

    def after_step(self, optimizer: Optimizer | None = None) -> None:
        """Change the weights, of the optimizer where one is given; call it once per update, after optimizer.step()."""

    def after_epoch(self) -> None:
        """Act between epochs, after testing; only PBWN(every="epoch") does."""

    def value(self) -> Tensor | float:
        """Return lam times the penalty as it stands, differentiable: the readable twin of before_step, and for logs."""
        return 0.0

    @property
    def weights(self) -> list[nn.Parameter]:
        """The parameters covered now, frozen ones too."""
        return [weight.parameter for weight in self.covered() if weight.parameter is not None]

    def norms(self) -> dict[str, Tensor]:
        """Return the norm of each filter, (n,), of each covered weight as it is applied, by the name of its layer."""
        with torch.no_grad():
            tensors = [(weight, applied(weight)) for weight in self.covered()]
            return {weight.name: filter_norms(weight.matrix(tensor)) for weight, tensor in tensors if tensor.ndim > 1}

    def fold(self, model: nn.Module | None = None) -> None:
        """Bake a reparametrization into plain weights, of a copy of the model where that is given."""

    def state_dict(self) -> dict[str, Any]:
        """Return copies of what a checkpoint must hold in addition to the model's own state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what state_dict returned; raises ValueError for anything else."""

    def members(self) -> list["Regularizer"]:
        """Return the regularizers that this one consists of: itself."""
        return [self]

    def covered(self) -> list[Weight]:
        """Return the weights covered now, frozen and reparametrized ones too."""
        return [] if self.coverage is None else self.coverage.weights()

    def trained(self) -> list[Weight]:
        """Return the covered weights that are not frozen now."""
        return [weight for weight in self.covered() if weight.parameter is not None and weight.parameter.requires_grad]

    def served(self, optimizer: Optimizer | None) -> list[Weight]:
        """Return the weights that a step acts on: not frozen, and of the optimizer where one is given.

        Raises ValueError where the processes hold parts of a weight that the method needs whole, or a hook acts too.
        """
        for hook in self.hooks:
            hook.refuse_call(optimizer)
        weights = self.trained() if optimizer is None else held(optimizer.param_groups, self.trained())
        for weight in weights:
            check_placements(weight, type(self).__name__, self.filterwise)
        return weights

    def with_gradients(self, optimizer: Optimizer | None) -> list[Weight]:
        """Return the served weights that have a gradient; warn once where no covered weight has one."""
        weights = [weight for weight in self.served(optimizer) if weight.tensor.grad is not None]
        if not weights and self.trained() and all(parameter.grad is None for parameter in self.weights):
            self.warn(
                "gradients",
                f"{type(self).__name__}: no covered weight has a gradient here, before_step() changes nothing: call it"
                " after backward(), before gradients are cleared, on the module that is trained, or hook the optimizer",
            )
        return weights

    def to_change(self, optimizer: Optimizer | None) -> list[Weight]:
        """Return the served weights that have a gradient, reduced to be changed; raises ValueError for a sparse one."""
        weights = self.with_gradients(optimizer)
        for weight in weights:
            gradient: Any = weight.tensor.grad
            if gradient.layout is not torch.strided:
                raise ValueError(
                    f"{type(self).__name__}: the gradient of layer {weight.name!r} is sparse: build the layer"
                    f" with sparse=False, or leave it out with layers=[..., '!{weight.name}']"
                )
            reduce_gradient(weight.tensor)
        return weights

    def warn(self, subject: str, message: str) -> None:
        """Warn of a subject, once in the life of a regularizer."""
        if subject not in self.warned:
            self.warned |= {subject}
            warnings.warn(message, stacklevel=2)

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Raise ValueError, or warn, where the method does not go with an optimizer."""

    def hook(self, optimizer: Optimizer) -> Hook:
        """Run before_step and after_step inside optimizer.step(), for a training loop you do not own.

        before_step runs once before the update, or after each call of a closure, whose loss gets the penalty too where
        the optimizer is LBFGS. A hook serves the weights of its optimizer: hook each where there are several. Of an
        optimizer that steps through another (accelerate's, SAM, Lookahead) the inner one is hooked. GradScaler unscales
        first and skips the step, and so the hook, on inf; a fused optimizer skips by itself, after the hook. State that
        a method has (state_dict()) is for the caller's checkpoint, and after_epoch() for its loop. Returns a handle
        whose remove() undoes it; until then before_step() and after_step() raise ValueError when called for it too.
        Raises ValueError for what is no optimizer, for one that is hooked already or holds no covered weight, and for a
        method that needs the batch (the Jacobian penalty).
        """
        return Hook(self, optimizer)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "hooks"}  # a copy is not hooked

    def __repr__(self) -> str:
        lam = f"lam={self.lam:g}" if self.lam else ""
        head = f"{type(self).__name__}({lam})"
        return head if self.coverage is None else f"{head}\n{self.coverage.table()}"


def applied(weight: Weight) -> Tensor:
    """Return the whole weight that the layer applies, computed where it is reparametrized; ValueError on meta."""
    tensor: Tensor = weight.tensor if weight.parameter is not None else getattr(weight.module, weight.attribute)
    if tensor.is_meta:
        raise ValueError(f"the weight of layer {weight.name!r} is on the meta device: give it values first")
    return whole(tensor)


def from_state(state: dict[str, Any], key: str, owner: Regularizer) -> Any:
    """Return state[key]; raises ValueError where the state of a regularizer does not hold it."""
    if key not in state:
        raise ValueError(f"{type(owner).__name__}: its state must hold {key!r}, got {', '.join(state) or 'nothing'}")
    return state[key]


class Chain(Regularizer):
    """Several regularizers in one, in the order given; lam is that of the first.

    Raises ValueError where there is none, or one twice.
    """

    def __init__(self, *regularizers: Regularizer) -> None:
        self.regularizers = regularizers
        mine = all(isinstance(each, Regularizer) for each in regularizers)
        if not regularizers or not mine or len({*self.members()}) < len(self.members()):
            raise ValueError("Chain needs one regularizer or more as its arguments, each once")
        self.needs_input_grad = any(regularizer.needs_input_grad for regularizer in regularizers)
        self.capturable = all(regularizer.capturable for regularizer in regularizers)

    @property
    def lam(self) -> float:
        return self.regularizers[0].lam

    @lam.setter
    def lam(self, lam: float) -> None:
        self.regularizers[0].lam = lam

    def covered(self) -> list[Weight]:
        weights = [weight for regularizer in self.regularizers for weight in regularizer.covered()]
        once = {weight.path if weight.parameter is None else id(weight.parameter): weight for weight in weights}
        return list(once.values())

    def loss(self, x: Tensor, logits: Tensor) -> Tensor | float:
        return sum(regularizer.loss(x, logits) for regularizer in self.regularizers)

    def before_step(self, optimizer: Optimizer | None = None) -> None:
        for regularizer in self.regularizers:
            regularizer.before_step(optimizer)

    def after_step(self, optimizer: Optimizer | None = None) -> None:
        for regularizer in self.regularizers:
            regularizer.after_step(optimizer)

    def after_epoch(self) -> None:
        for regularizer in self.regularizers:
            regularizer.after_epoch()

    def value(self) -> Tensor | float:
        return sum(regularizer.value() for regularizer in self.regularizers)

    def fold(self, model: nn.Module | None = None) -> None:
        for regularizer in self.regularizers:
            regularizer.fold(model)

    def state_dict(self) -> dict[str, Any]:
        return {str(i): regularizer.state_dict() for i, regularizer in enumerate(self.regularizers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        states = [from_state(state, str(i), self) for i in range(len(self.regularizers))]
        for regularizer, own in zip(self.regularizers, states, strict=True):
            regularizer.load_state_dict(own)

    def members(self) -> list[Regularizer]:
        return [member for regularizer in self.regularizers for member in regularizer.members()]

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.regularizers))
