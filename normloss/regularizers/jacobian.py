"""The Jacobian penalty: of the function, not of the weights, so the only method that needs the batch."""

from typing import Any

import torch
from torch import Tensor, nn

from normloss.regularizers.base import Regularizer, from_state
from normloss.regularizers.draws import Draws
from normloss.regularizers.stacked import wide


class JacobianPenalty(Regularizer):
    """lam/2 times the mean squared Frobenius norm of the Jacobian of the logits with respect to the input [26].

    R = 1/2 mean over images of |dz/dx|_F^2, by n_proj random directions v on the unit sphere of R^K:
    |dz/dx|_F^2 ~ K |v' dz/dx|^2 (Hoffman et al. 2019, arXiv:1908.02729); n_proj=-1 takes all K, exactly.

    lam: 0.01 in facebookresearch/jacobian_regularizer's README. The input must require a gradient *before* the
    forward pass: `x.requires_grad_(reg.needs_input_grad)`. In training mode batch norm couples the images of a batch,
    so the derivative has cross terms. Costs a second backward pass through the first: 2 to 3 times a step.
    seed: of the directions, which are identical on all processes and independent of torch's generators; None: they
    come from torch's default generator of the device, as in version 0.1.0.
    torch.compile with AOTAutograd or Inductor has no double backward: leave the model uncompiled.
    Raises ValueError from loss() where the input requires no gradient, and from hook(): the optimizer sees no batch.
    """

    needs_input_grad = True
    capturable = False  # keeps the last batch's value

    def __init__(self, model: nn.Module, *, lam: float, n_proj: int = 1, seed: int | None = 0) -> None:
        super().__init__(model, lam=lam)
        self.draws = Draws(seed)
        if n_proj != -1 and n_proj < 1:
            raise ValueError(f"n_proj must be at least 1, or -1 for all directions, got {n_proj}")
        self.n_proj = n_proj
        self.last: Tensor | float = 0.0
        self.looked = False  # whether all has a double backward

    def loss(self, x: Tensor, logits: Tensor) -> Tensor | float:
        """Return lam R for x (B, ...) and logits (B, K) computed from it; 0.0 for an empty batch."""
        if not torch.is_grad_enabled():
            raise ValueError("JacobianPenalty: loss() needs gradients, which torch.no_grad() switches off")
        if not x.requires_grad:
            raise ValueError("JacobianPenalty: the input must require a gradient before the forward pass")
        if logits.ndim != 2:
            raise ValueError(f"JacobianPenalty: logits must be (B, K), got {tuple(logits.shape)}")
        if self.lam == 0 or logits.numel() == 0:
            self.last = 0.0
            return 0.0
        B, K = logits.shape
        if self.n_proj == -1:
            directions = list(torch.eye(K, dtype=logits.dtype, device=logits.device).unsqueeze(1).expand(K, B, K))
            share = 1.0
        else:
            generator = self.draws.generator(logits.device)
            drawn = torch.randn(self.n_proj, B, K, dtype=logits.dtype, device=logits.device, generator=generator)
            directions = list(drawn / drawn.norm(dim=2, keepdim=True))
            share = K / self.n_proj
        squares = logits.new_zeros((), dtype=wide(logits.dtype))
        for v in directions:  # each (B, K)
            (vJ,) = torch.autograd.grad(logits, x, v, create_graph=True)
            squares = squares + vJ.to(squares.dtype).square().sum()
        self.look_for_double_backward(vJ)
        R = 0.5 * share * squares / B
        self.last = self.lam * R.detach()
        return self.lam * R

    def look_for_double_backward(self, gradient: Tensor) -> None:
        """Raise ValueError, at the first batch, where a gradient cannot be differentiated once more."""
        if not self.looked and any("NotImplemented" in name for name in operations(gradient)):
            raise ValueError(
                "JacobianPenalty: an operation of the model has no double backward; fast attention has none: run"
                " the model under torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)"
            )
        self.looked = True

    def value(self) -> Tensor | float:
        """Return lam R of the last batch."""
        return self.last

    def state_dict(self) -> dict[str, Any]:
        return {"last": torch.as_tensor(self.last), "draws": self.draws.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last = from_state(state, "last", self)
        self.draws.load_state_dict(state.get("draws", {}))


def operations(tensor: Tensor) -> set[str]:
    """Return the names of all operations in a tensor's graph."""
    seen, left = set(), [tensor.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [following for following, _ in node.next_functions]
    return {node.name() for node in seen}
