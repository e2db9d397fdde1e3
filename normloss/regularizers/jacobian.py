"""The Jacobian penalty: of the function, not of the weights, so the only method that needs the batch."""

from typing import Any

import torch
from torch import Tensor, nn

from normloss.regularizers.base import Regularizer


class JacobianPenalty(Regularizer):
    """lam/2 times the mean squared Frobenius norm of the Jacobian of the logits with respect to the input [26].

    R = 1/2 mean over images of |dz/dx|_F^2, by n_proj random directions v on the unit sphere of R^K:
    |dz/dx|_F^2 ~ K |v' dz/dx|^2 (Hoffman et al. 2019, arXiv:1908.02729); n_proj=-1 takes all K, exactly.

    lam: 0.01 in facebookresearch/jacobian_regularizer's README. The input must require a gradient *before* the
    forward pass: `x.requires_grad_(reg.needs_input_grad)`. In training mode batch norm couples the images of a batch,
    so the derivative has cross terms. Costs a second backward pass through the first: 2 to 3 times a step.
    torch.compile with AOTAutograd or Inductor has no double backward: leave the model uncompiled.
    Raises ValueError from loss() where the input requires no gradient, and from hook(): the optimizer sees no batch.
    """

    needs_input_grad = True
    capturable = False  # keeps the last batch's value

    def __init__(self, model: nn.Module, *, lam: float, n_proj: int = 1) -> None:
        super().__init__(model, lam=lam)
        if n_proj != -1 and n_proj < 1:
            raise ValueError(f"n_proj must be at least 1, or -1 for all directions, got {n_proj}")
        self.n_proj = n_proj
        self.last: Tensor | float = 0.0

    def loss(self, x: Tensor, logits: Tensor) -> Tensor | float:
        """lam R for x (B, ...) and logits (B, K) computed from it."""
        if not x.requires_grad:
            raise ValueError("JacobianPenalty: the input must require a gradient before the forward pass")
        if self.lam == 0:
            self.last = 0.0
            return 0.0
        B, K = logits.shape
        if self.n_proj == -1:
            directions = list(torch.eye(K, dtype=logits.dtype, device=logits.device).unsqueeze(1).expand(K, B, K))
            share = 1.0
        else:
            drawn = torch.randn(self.n_proj, B, K, dtype=logits.dtype, device=logits.device)
            directions = list(drawn / drawn.norm(dim=2, keepdim=True))
            share = K / self.n_proj
        wide = torch.promote_types(logits.dtype, torch.float32)
        squares = logits.new_zeros((), dtype=wide)
        for v in directions:  # each (B, K)
            (vJ,) = torch.autograd.grad(logits, x, v, create_graph=True)
            squares = squares + vJ.to(wide).square().sum()
        R = 0.5 * share * squares / B
        self.last = self.lam * R.detach()
        return self.lam * R

    def value(self) -> Tensor | float:
        """lam R of the last batch."""
        return self.last

    def state_dict(self) -> dict[str, Any]:
        return {"last": torch.as_tensor(self.last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last = state["last"]
