"""Pure maths of the regularizers on a filter matrix W (n, p): one filter a row, p = C_in * kh * kw.

Values and their closed-form gradients, without lambda: the caller multiplies. Half-precision input is
computed in float32 and returned as it came; float64 stays float64. Section and equation numbers are the paper's.
"""

import torch
from torch import Tensor

TINY = 1e-12  # below this a norm counts as zero and its row gets the gradient 0


def _wide(W: Tensor) -> Tensor:
    """W in at least float32: norms and Gram matrices lose their meaning in half precision."""
    return W.float() if W.dtype in (torch.float16, torch.bfloat16) else W


def filter_norms(W: Tensor) -> Tensor:
    """Euclidean norm of each filter, (n,)."""
    return torch.linalg.vector_norm(_wide(W), dim=1)


def weight_decay(W: Tensor) -> Tensor:
    """sum w^2 over all entries (equation 9); W of any shape."""
    return _wide(W).square().sum()


def weight_decay_grad(W: Tensor) -> Tensor:
    """2 w (equation 10). torch.optim.SGD(weight_decay=a) adds a w, so a = 2 lambda."""
    return 2 * W


def norm_loss(W: Tensor) -> Tensor:
    """sum over filters of (1 - |w|)^2 (equation 7); W (n, p)."""
    return (1 - filter_norms(W)).square().sum()


def norm_loss_grad(W: Tensor) -> Tensor:
    """2 (1 - 1/|w|) w for each filter w (equation 11), (n, p); 0 for a zero filter, as autograd has it."""
    r = filter_norms(W).clamp_min(TINY).unsqueeze(1)  # (n, 1)
    return (2 * (1 - 1 / r) * _wide(W)).to(W.dtype)
