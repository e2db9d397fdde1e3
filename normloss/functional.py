"""Pure maths of the regularizers on a filter matrix W (n, p): one filter per row, p = C_in * kh * kw.

Values and their closed-form gradients, without lambda: the caller multiplies. Half-precision input is computed in
float32 and returned as it came; float64 stays float64. Equations and [n] are the paper's.
A filter of norm TINY or less counts as zero: norm loss does not pull it, and a projection leaves it as it is.
The Gram matrix of the short side is W W' where n <= p and W' W otherwise: orthonormal filters cannot be more than p.
"""

from typing import Any

import torch
from torch import Tensor

TINY = 1e-12  # up to this a norm counts as zero
HUGE = 2.0**32  # a power of two, which rounds nothing, and small enough for gradients to be scaled by it
ENTRIES = 2**20  # of all pairs of filters that mc() forms at once whatever the size of W
STEPS = 5  # Newton iterations from one Gram matrix: rounding in its small eigenvalues grows by up to 2.25 in each


def _wide(W: Tensor) -> Tensor:
    """W in at least float32: norms and Gram matrices lose their meaning in half precision."""
    return W.float() if W.dtype in (torch.float16, torch.bfloat16) else W


def _eye(A: Tensor) -> Tensor:
    return torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)


def filter_norms(W: Tensor) -> Tensor:
    """Euclidean norm of each filter, (n,), also where the squares of its weights are too large for their type."""
    V = _wide(W)
    r = torch.linalg.vector_norm(V, dim=1)
    return torch.where(r.isinf(), torch.linalg.vector_norm(V / HUGE, dim=1) * HUGE, r)


def turned(W: Tensor, V: Tensor) -> Tensor:
    """Angle in degrees between each filter of W and the same one of V, (n,); 2 asin(|w/|w| - v/|v|| / 2), which keeps
    its precision for small angles. Kosson et al. 2024 measure an effective learning rate by it."""
    W, V = _wide(W), _wide(V)
    apart = W / filter_norms(W).clamp_min(TINY).unsqueeze(1) - V / filter_norms(V).clamp_min(TINY).unsqueeze(1)
    return torch.rad2deg(2 * torch.asin((filter_norms(apart) / 2).clamp_max(1)))


def _gram(W: Tensor) -> Tensor:
    """Gram matrix of the short side, (..., m, m) with m = min(n, p)."""
    return W @ W.mT if W.shape[-2] <= W.shape[-1] else W.mT @ W


def gram_residual(W: Tensor) -> Tensor:
    """Gram matrix of the short side minus the identity, (m, m) with m = min(n, p)."""
    gram = _gram(_wide(W))
    return gram - _eye(gram)


# penalties -------------------------------------------------------------------------------------


def weight_decay(W: Tensor) -> Tensor:
    """sum w^2 over all entries (equation 9); W of any shape."""
    return _wide(W).square().sum()


def weight_decay_grad(W: Tensor) -> Tensor:
    """2 w (equation 10). torch.optim.SGD(weight_decay=a) adds a w, so a = 2 lambda."""
    return 2 * W


def norm_loss(W: Tensor) -> Tensor:
    """sum over filters of (1 - |w|)^2 (equation 7); W (n, p)."""
    return (1 - torch.threshold(filter_norms(W), TINY, 0)).square().sum()


def norm_loss_grad(W: Tensor) -> Tensor:
    """2 (1 - 1/|w|) w for each filter w (equation 11), (n, p); 0 for a zero filter, as autograd has it."""
    r = torch.threshold(filter_norms(W), TINY, 1).unsqueeze(1)  # (n, 1)
    return (2 * (1 - 1 / r) * _wide(W)).to(W.dtype)


def so(W: Tensor) -> Tensor:
    """Soft orthogonality [14]: |Gram residual|_F^2 of the short side.

    The long side's value is larger by the constant |n - p| and has the same gradient; [14]'s "double" form, the sum of
    both sides, is therefore this with twice lambda (and that constant).
    """
    return gram_residual(W).square().sum()


def so_grad(W: Tensor) -> Tensor:
    """4 (W W' - I) W, (n, p)."""
    V, residual = _wide(W), gram_residual(W)
    return (4 * (residual @ V if V.shape[-2] <= V.shape[-1] else V @ residual)).to(W.dtype)


def mc(W: Tensor) -> Tensor:
    """Mutual coherence [14]: the largest |entry| of W W' - I, over pairs of filters (n x n, also where n > p).

    [14] writes a maximum norm and has released no code: whether row sums were meant is open.
    """
    W = _wide(W)
    return _entry(W, _closest(W.detach())).abs()


def mc_grad(W: Tensor) -> Tensor:
    """s (e_i w_j + e_j w_i) for the largest entry (i, j) of sign s, 2 s w_i where i = j; a subgradient at ties."""
    V = _wide(W)
    ij = _closest(V)
    sign = _entry(V, ij).sign()
    return torch.zeros_like(V).index_add_(0, ij, sign * V.index_select(0, ij.flip(0))).to(W.dtype)


def _entry(W: Tensor, ij: Tensor) -> Tensor:
    """Entry (i, j) of W W' - I."""
    w, v = W.index_select(0, ij)
    return (w * v).sum() - (ij[0] == ij[1]).to(W.dtype)


def _closest(W: Tensor) -> Tensor:
    """Return the pair (i, j) of filters with the largest |entry| of W W' - I, (2,), in a few times W's memory:
    all pairs of a block of rows at a time."""
    n = len(W)
    rows = max(1, max(ENTRIES, W.numel()) // n)
    largest, place = W.new_full((), -1.0), torch.zeros((), dtype=torch.int64, device=W.device)
    for start in range(0, n, rows):
        entries = W[start : start + rows] @ W.mT
        entries.diagonal(start).sub_(1)
        value, k = entries.abs_().flatten().max(0)
        place = torch.where(value > largest, k + start * n, place)
        largest = torch.maximum(value, largest)
    return torch.stack([place // n, place % n])


def srip(W: Tensor) -> Tensor:
    """Spectral restricted isometry property [14], converged: sigma^2, sigma the spectral norm of the Gram residual."""
    return torch.linalg.eigvalsh(gram_residual(W)).abs().max().square()


def srip_grad(W: Tensor) -> Tensor:
    """4 sigma s u u' W, with s sigma the residual's eigenvalue of largest size and u its unit eigenvector."""
    V = _wide(W)
    values, vectors = torch.linalg.eigh(gram_residual(W))
    k = values.abs().argmax()
    u = vectors[:, k]  # (m,)
    side = torch.outer(u, u @ V) if V.shape[0] <= V.shape[1] else torch.outer(V @ u, u)
    return (4 * values[k] * side).to(W.dtype)


def srip_power(W: Tensor, b: Tensor, steps: int = 2) -> Tensor:
    """SRIP as its authors run it: |A v|^2, A the Gram residual, v = A^(steps-1) b normalised; b (m,).

    VITA-Group/Orthogonality-in-CNNs, Wide-Resnet/train_n.py: b uniform in [0, 1), two steps, gradient through all of
    them. A has the norm of `srip` only in the limit of many steps. Products with W only: the Gram matrix is not formed.
    """
    V = _wide(W)
    V = V if V.shape[0] <= V.shape[1] else V.mT
    b = b / torch.linalg.vector_norm(b).clamp_min(TINY)
    for _ in range(steps - 1):
        b = V @ (V.mT @ b) - b
        b = b / torch.linalg.vector_norm(b).clamp_min(TINY)
    return (V @ (V.mT @ b) - b).square().sum()


def spectral_norm(W: Tensor) -> Tensor:
    """Spectral-norm regularization [27]: sigma_1^2 / 2, sigma_1 the largest singular value."""
    return torch.linalg.matrix_norm(_wide(W), ord=2).square() / 2


def spectral_norm_grad(W: Tensor) -> Tensor:
    """sigma_1 u_1 v_1', (n, p)."""
    U, S, Vh = torch.linalg.svd(_wide(W), full_matrices=False)
    return (S[0] * torch.outer(U[:, 0], Vh[0])).to(W.dtype)


def power_step(W: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One power iteration from u (n,): (sigma, u, v), unit u and v, sigma = u' W v; repeated it finds sigma_1.

    Where W' u = 0 there is no direction to turn to: u stays, and v and sigma are 0.
    """
    W = _wide(W)
    v = W.mT @ u
    v = v / torch.linalg.vector_norm(v).clamp_min(TINY)
    Wv = W @ v
    sigma = torch.linalg.vector_norm(Wv)
    return sigma, torch.where(sigma > TINY, Wv / sigma.clamp_min(TINY), u), v


# the oblique manifold: unit filters --------------------------------------------------------------


def row_normalize(W: Tensor) -> Tensor:
    """w / |w| for each filter (equation 6): projection to the oblique manifold; a zero filter stays as it is."""
    return (_wide(W) / torch.threshold(filter_norms(W), TINY, 1).unsqueeze(1)).to(W.dtype)


def tangent_oblique(W: Tensor, G: Tensor) -> Tensor:
    """G - (w . g) w for each filter (equation 4): the Riemannian gradient at unit filters W; both (n, p)."""
    V, H = _wide(W), _wide(G)
    return (H - (V * H).sum(1, keepdim=True) * V).to(G.dtype)


# the Stiefel manifold: orthonormal rows where n <= p, else orthonormal columns -------------------------


def stiefel_retract(W: Tensor) -> Tensor:
    """Return the orthonormal QR factor with positive diagonal, of W' where n <= p; (n, p) -> (n, p)."""
    V = _wide(W)
    wide = V.shape[-2] <= V.shape[-1]
    Q, R = torch.linalg.qr(V.mT if wide else V)
    Q = Q * torch.where(torch.diagonal(R, dim1=-2, dim2=-1) < 0, -1.0, 1.0).unsqueeze(-2).to(Q.dtype)
    return (Q.mT if wide else Q).to(W.dtype)


def tangent_stiefel(W: Tensor, G: Tensor) -> Tensor:
    """G - sym(G W') W for orthonormal rows, G - W sym(W' G) for orthonormal columns; both (n, p)."""
    V, H = _wide(W), _wide(G)
    if V.shape[-2] <= V.shape[-1]:
        A = H @ V.mT
        return (H - (A + A.mT) / 2 @ V).to(G.dtype)
    A = V.mT @ H
    return (H - V @ ((A + A.mT) / 2)).to(G.dtype)


# orthogonalizing reparametrizations ----------------------------------------------------------------


def centre(Z: Tensor) -> Tensor:
    """Z with the mean of each filter taken off."""
    Z = _wide(Z)
    return Z - Z.mean(-1, keepdim=True)


def oni(Z: Tensor, T: int = 5, eps: float = 0.0) -> Tensor:
    """Orthogonalization by T Newton iterations [15]: X <- 1.5 X - 0.5 X X' X from X = Z_c / sqrt(|Z_c Z_c'|_F + eps).

    Each singular value s of the start becomes s -> 1.5 s - 0.5 s^3, T times; singular vectors stay. In exact arithmetic
    the value is that of ONI_PyTorch's iteration on B ~ (Z_c Z_c')^(-1/2), which diverges in float32 for T > 7, and for
    n > p leaves out a division by the norm. Centring leaves a singular value 0 where n >= p. Z (..., n, p).
    Where the long side q is at least twice the short side m, five iterations at a time are done on the (m, m) Gram
    matrix, for 4 m^2 q + 24 m^3 flops instead of 20 m^2 q; else each on X. Both are stable for every T.
    """
    X = centre(Z)
    gram = _gram(X)
    scale = torch.linalg.matrix_norm(gram) + eps  # equal for both sides
    noise = (torch.finfo(X.dtype).eps * torch.linalg.matrix_norm(_wide(Z))).square()  # of constant filters, centred
    scale = torch.where(scale > noise, scale, 1)[..., None, None]
    X, R = X / scale.sqrt(), gram / scale
    short, long = sorted(X.shape[-2:])
    steps = STEPS if long >= 2 * short else 1  # 1 is the plain iteration on X; the two break even at 1.5
    for left in range(T, 0, -steps):
        c, P = _newton(R, min(left, steps))
        X = c * X + (P @ X if X.shape[-2] <= X.shape[-1] else X @ P)
        if left > steps:
            R = _gram(X)  # anew: on its own R would drift from the Gram matrix of X and diverge, for T > 20 in float32
    return X.to(Z.dtype)


def _newton(R: Tensor, T: int) -> tuple[float, Tensor]:
    """c and P (..., m, m) such that T iterations from X with the Gram matrix R give (c I + P) X.

    One iteration is X <- M X with M = 1.5 I - 0.5 R, hence R <- M R M. The multiples of I stay out of the products:
    what R adds to them where it is small would be rounded away.
    """
    c, P = 1.5, -0.5 * R
    for _ in range(T - 1):
        square = R @ R
        R = 2.25 * R - 1.5 * square + 0.25 * R @ square
        c, P = 1.5 * c, 1.5 * P - 0.5 * (c * R + R @ P)
    return c, P


def olm(Z: Tensor, group_size: int = 64, eps: float = 1e-8) -> Tensor:
    """Orthogonal linear module [21]: within each group of filters W = (Z_c Z_c' / p + eps I)^(-1/2) Z_c / sqrt(p).

    Rows of a group are orthonormal and sum to zero; groups are consecutive, the last may be smaller. Where a group has
    no full rank (always if it has p filters or more) the missing directions are dropped; gradients stay finite.
    eps is absolute, as the authors have it: for weights much smaller than one it keeps W from being orthonormal.
    """
    return torch.cat([_whiten(group, eps) for group in _wide(Z).split(group_size)]).to(Z.dtype)


def _whiten(Z: Tensor, eps: float) -> Tensor:
    X, p = centre(Z), Z.shape[-1]
    covariance = X @ X.mT / p
    return InverseSqrt.apply(covariance + eps * _eye(covariance)) @ X / p**0.5


class InverseSqrt(torch.autograd.Function):
    """A^(-1/2) of a symmetric positive matrix, A = D diag(a) D'; eigenvalues at rounding level count as dropped.

    The gradient is D (K * D' G D) D' with K_ij = -1 / (sqrt(a_i a_j) (sqrt(a_i) + sqrt(a_j))), the divided difference
    of a^(-1/2) in a form without a_i - a_j: equal eigenvalues, where the usual 1 / (a_i - a_j) blows up, are harmless.
    """

    @staticmethod
    def forward(ctx: Any, A: Tensor) -> Tensor:
        a, D = torch.linalg.eigh(A)
        a = a.clamp_min(0)
        kept = a > a[-1] * len(a) * torch.finfo(a.dtype).eps
        root = torch.where(kept, a, 1).sqrt()
        ctx.save_for_backward(root, D, kept)
        return (D * torch.where(kept, 1 / root, 0)) @ D.mT

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> Tensor:
        root, D, kept = ctx.saved_tensors
        K = -1 / (root[:, None] * root * (root[:, None] + root))
        # against a dropped direction the divided difference is that of a^(-1/2) and 0
        mixed = torch.where(kept, root**-3, 0)
        K = torch.where(kept[:, None] & kept, K, mixed[:, None] * ~kept + ~kept[:, None] * mixed)
        return D @ (K * (D.mT @ G @ D)) @ D.mT
