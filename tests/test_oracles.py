"""Every method against numbers that share no code with it, in float64 unless said.

The numbers come from autograd, numpy, scipy, torch's parametrizations, geoopt and geotorch, and from released code
written out. Without geoopt or geotorch the tests that need them are skipped.
"""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import fractional_matrix_power, qr
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn.utils import parametrizations

import normloss
from normloss import functional

SHAPES = {"wide": (6, 27), "tall": (27, 6), "square": (9, 9), "one row": (1, 12), "one column": (7, 1)}
THREE = [(6, 27), (27, 6), (9, 9)]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gap(a, b) -> float:
    """Largest deviation; nan where either has one."""
    a, b = (t.detach().numpy() if isinstance(t, Tensor) else np.asarray(t) for t in (a, b))
    assert a.shape == b.shape or 0 in (a.ndim, b.ndim), (a.shape, b.shape)
    return float(np.abs(a - b).max())


def svd(W: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.linalg.svd(W.detach().numpy(), full_matrices=False)


def orthonormal(n: int, p: int, seed: int = 0) -> Tensor:
    """Rows where n <= p, else columns."""
    U, _, Vh = svd(randn(n, p, seed=seed))
    return torch.from_numpy(U @ Vh)


def conv_of(W: Tensor) -> nn.Sequential:
    """A 1x1 convolution whose filter matrix is W, alone in a model."""
    model = nn.Sequential(nn.Conv2d(W.shape[1], W.shape[0], 1, bias=False)).to(W.dtype)
    with torch.no_grad():
        model[0].weight.copy_(W[:, :, None, None])
    return model


def matrix(model: nn.Module) -> Tensor:
    return model[0].weight.detach().flatten(1)


def network(batch_norm: bool = True) -> nn.Sequential:
    """Two convolutions, each with a batch norm (or not) behind it; its eps vanishes, so that a norm cancels."""
    torch.manual_seed(0)
    norm = partial(nn.BatchNorm2d, eps=1e-30) if batch_norm else nn.Identity
    convs = nn.Conv2d(3, 8, 3, bias=False), norm(8), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False), norm(6), nn.ReLU()
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(24, 4)).double()


def weights(model: nn.Sequential) -> list[nn.Parameter]:
    """Of a network(): two convolutions and the head."""
    return [model[k].weight for k in (0, 3, 7)]


def batch() -> tuple[Tensor, Tensor]:
    return randn(12, 3, 6, 6, seed=1), torch.arange(12) % 4


def train(model: nn.Module, reg: normloss.Regularizer, steps: int = 30, momentum: float = 0.9) -> None:
    x, y = batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        reg.before_step()
        optimizer.step()
        reg.after_step()


# penalties ---------------------------------------------------------------------------------------


@pytest.fixture(params=SHAPES, ids=str)
def W(request):
    return randn(*SHAPES[request.param])


@pytest.mark.parametrize("scale", [1.0, 0.05], ids=["norms above 1", "norms below 1"])
@pytest.mark.parametrize("zero_row", [False, True], ids=["full", "zero row"])
@pytest.mark.parametrize("name", ["norm_loss", "weight_decay", "so", "mc", "srip", "spectral_norm"])
def test_every_closed_form_is_autograds_gradient(name, zero_row, scale, W):
    V = scale * W
    if zero_row:
        V[-1] = 0
    V.requires_grad_()
    (gradient,) = torch.autograd.grad(getattr(functional, name)(V), V)
    ours = getattr(functional, f"{name}_grad")(V.detach())
    assert gap(ours, gradient) <= 1e-13 * gradient.abs().max().item()


def test_closed_form_of_mc_where_two_different_unit_filters_are_closest():
    V = functional.row_normalize(randn(6, 27)).requires_grad_()
    (gradient,) = torch.autograd.grad(functional.mc(V), V)
    assert gradient.any(1).sum() == 2
    assert gap(functional.mc_grad(V.detach()), gradient) < 1e-14


def test_values_are_numpys(W):
    A = W.numpy()
    n, p = A.shape
    gram = A @ A.T if n <= p else A.T @ A
    residual = gram - np.eye(len(gram))
    assert functional.norm_loss(W).item() == pytest.approx(((1 - np.sqrt((A**2).sum(1))) ** 2).sum(), rel=1e-13)
    assert functional.weight_decay(W).item() == pytest.approx((A**2).sum(), rel=1e-13)
    assert functional.so(W).item() == pytest.approx((residual**2).sum(), rel=1e-13)
    assert functional.mc(W).item() == pytest.approx(np.abs(A @ A.T - np.eye(n)).max(), rel=1e-13)
    assert functional.srip(W).item() == pytest.approx(np.abs(np.linalg.eigvalsh(residual)).max() ** 2, rel=1e-12)
    assert functional.spectral_norm(W).item() == pytest.approx(np.linalg.norm(A, 2) ** 2 / 2, rel=1e-13)


def test_the_long_side_adds_a_constant_to_soft_orthogonality_and_double_so_is_twice_it(W):
    V = W.clone().requires_grad_()
    n, p = V.shape
    rows = (V @ V.T - torch.eye(n)).square().sum()
    columns = (V.T @ V - torch.eye(p)).square().sum()
    assert (columns - rows).item() == pytest.approx(p - n, abs=1e-10)
    (both,) = torch.autograd.grad(rows + columns, V, retain_graph=True)
    assert gap(both, 2 * functional.so_grad(W)) < 1e-11 * both.abs().max().item()

    model = conv_of(W)
    reg = normloss.DSO(model, lam=0.5)
    assert reg.value().item() == pytest.approx(0.5 * (rows + columns).item(), rel=1e-12)
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    reg.before_step()
    assert gap(model[0].weight.grad.flatten(1), 0.5 * both) < 1e-11 * both.abs().max().item()


@pytest.mark.parametrize("shape", THREE, ids=str)
@pytest.mark.parametrize("name", ["so", "srip"])
def test_orthonormal_filters_cost_nothing_and_feel_nothing(name, shape):
    V = orthonormal(*shape)
    assert getattr(functional, name)(V).item() < 1e-28
    assert gap(getattr(functional, f"{name}_grad")(V), 0.0) < 1e-14


def test_fifty_power_steps_of_srip_are_its_eigenvalue(W):
    b = torch.rand(min(W.shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert functional.srip_power(W, b, 50).item() == pytest.approx(functional.srip(W).item(), rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_two_power_steps_of_srip_are_the_released_computation(seed, W):
    V = W.clone().requires_grad_()
    b = torch.rand(min(W.shape), 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    gram = V.T @ V if V.shape[0] > V.shape[1] else V @ V.T
    w_tmp = gram - torch.eye(len(gram), dtype=torch.float64)
    v1 = w_tmp @ b
    v2 = v1 / v1.norm()
    released = (w_tmp @ v2).norm() ** 2
    ours = functional.srip_power(V, b.squeeze(1), 2)
    assert ours.item() == pytest.approx(released.item(), rel=1e-12)
    assert ours.item() <= functional.srip(V).item() * (1 + 1e-12)
    (a,), (c,) = torch.autograd.grad(ours, V), torch.autograd.grad(released, V)
    assert gap(a, c) < 1e-11 * c.abs().max().item()


def test_srip_with_any_number_of_steps_ignores_the_length_of_its_start(W):
    b = torch.rand(min(W.shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for steps in (1, 2, 3):
        once, thrice = functional.srip_power(W, b, steps).item(), functional.srip_power(W, 3 * b, steps).item()
        assert once == pytest.approx(thrice, rel=1e-12)
        assert once <= functional.srip(W).item() * (1 + 1e-12)


def test_the_spectral_gradient_is_of_rank_one_and_numpys(W):
    U, S, Vh = svd(W)
    gradient = functional.spectral_norm_grad(W)
    assert np.linalg.matrix_rank(gradient.numpy(), tol=1e-12 * S[0]) == 1
    assert gap(gradient, S[0] * np.outer(U[:, 0], Vh[0])) < 1e-12


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (32, 32)], ids=str)
def test_two_hundred_power_steps_find_the_largest_singular_value_as_torchs_spectral_norm_does(shape):
    V = randn(*shape)
    u = randn(shape[0], seed=1)
    u = u / u.norm()
    for _ in range(200):
        sigma, u, v = functional.power_step(V, u)
    U, S, Vh = svd(V)
    assert sigma.item() == pytest.approx(S[0], abs=1e-6)
    assert gap(torch.outer(u, v), np.outer(U[:, 0], Vh[0])) < 1e-4

    layer = nn.Linear(shape[1], shape[0], bias=False).double()
    layer.weight.data.copy_(V)
    parametrizations.spectral_norm(layer, n_power_iterations=300)
    assert sigma.item() == pytest.approx((V.norm() / layer.weight.norm()).item(), abs=1e-6)


def test_the_spectral_penalty_of_a_constant_weight_becomes_its_gradient_in_float64_too():
    model = conv_of(randn(6, 27))
    reg = normloss.SpectralNormPenalty(model, lam=0.5)
    for _ in range(200):
        model[0].weight.grad = torch.zeros_like(model[0].weight)
        reg.before_step()
    assert gap(model[0].weight.grad.flatten(1), 0.5 * functional.spectral_norm_grad(randn(6, 27))) < 1e-6


def test_the_spectral_penalty_survives_a_weight_that_starts_at_zero():
    model = conv_of(torch.zeros(6, 27))
    reg = normloss.SpectralNormPenalty(model, lam=0.5)
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    reg.before_step()
    assert gap(model[0].weight.grad, 0.0) == 0
    nn.init.constant_(model[0].weight, 1.0)
    reg.before_step()
    assert gap(model[0].weight.grad, 0.5) < 1e-6  # sigma u v' of a matrix of ones is that matrix


def test_norm_loss_by_hand():
    W = torch.tensor([[3.0, 4.0], [0.0, 0.5]], dtype=torch.float64)  # norms 5 and 1/2
    assert functional.norm_loss(W).item() == pytest.approx(16 + 0.25)
    expected = torch.tensor([[2 * 3 * 0.8, 2 * 4 * 0.8], [0.0, 2 * 0.5 * (1 - 2)]], dtype=torch.float64)
    torch.testing.assert_close(functional.norm_loss_grad(W), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    W = torch.full((1, 4096), 0.01, dtype=dtype)  # squares of 1e-4 underflow or round in half precision
    exact = W.double().norm().item()
    assert functional.filter_norms(W).item() == pytest.approx(exact, rel=1e-5)
    assert functional.norm_loss_grad(W).dtype == dtype


def test_filters_turn_by_the_angle_they_were_turned_by():
    angles = torch.tensor([0.0, 1e-3, 30.0, 90.0, 180.0])  # degrees
    W = torch.tensor([[1.0, 0.0]]).repeat(5, 1)
    V = 3 * torch.stack([torch.deg2rad(angles.double()).cos(), torch.deg2rad(angles.double()).sin()], dim=1).float()
    assert torch.allclose(functional.turned(W, V), angles, rtol=1e-4, atol=1e-6)
    assert functional.turned(torch.zeros(1, 2), V[:1]).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_whose_squares_overflow_have_norms_and_gradients(dtype):
    W = torch.full((2, 4), 1e25, dtype=dtype)
    W[1] = 0.5
    W.requires_grad_()
    assert functional.filter_norms(W).tolist() == pytest.approx([2e25, 1.0])
    assert functional.row_normalize(W).flatten().tolist() == pytest.approx([0.5] * 8)
    (gradient,) = torch.autograd.grad(functional.norm_loss(W), W)
    for found in (gradient, functional.norm_loss_grad(W.detach())):
        assert found[0].tolist() == pytest.approx([2e25] * 4)
        assert found[1].tolist() == pytest.approx([0] * 4, abs=1e-6)


def test_mutual_coherence_of_many_filters_takes_a_few_times_their_memory(monkeypatch):
    """Searched in blocks: the same pair as in one matrix, no tensor much larger than W."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(300, 5, generator=generator, dtype=torch.float64)
    W[7], W[250] = 0, W[20] * 3  # the closest pair is (250, 250) or (20, 250)
    for scale in (1.0, 0.1):
        V = (scale * W).requires_grad_()
        whole = functional.mc(V), functional.mc_grad(V.detach())
        with monkeypatch.context() as patched:
            patched.setattr(functional, "ENTRIES", 1)
            searched = functional.mc(V), functional.mc_grad(V.detach())
            (gradient,) = torch.autograd.grad(functional.mc(V), V)
        torch.testing.assert_close(searched, whole, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(gradient, whole[1], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_filter_of_norm_1e_12_or_less_counts_as_zero_everywhere(dtype):
    """Of value 1, not pulled by value(), the closed form or the stacked one, and left as it is by a projection."""
    for norm, counts in ((0.0, False), (1e-13, False), (1e-11, True)):
        V = torch.tensor([[norm, 0.0], [0.6, 0.8]], dtype=dtype).requires_grad_()
        assert functional.norm_loss(V).item() == pytest.approx(1)
        (gradient,) = torch.autograd.grad(functional.norm_loss(V), V)
        model = conv_of(V.detach())
        reg = normloss.NormLoss(model, lam=1.0)
        model[0].weight.grad = torch.zeros_like(model[0].weight)
        reg.before_step()
        for found in (gradient, functional.norm_loss_grad(V.detach()), model[0].weight.grad.flatten(1)):
            assert gap(found, [[-2.0 * counts, 0], [0, 0]]) < 1e-6
        normloss.PBWN(model)
        assert matrix(model)[0].tolist() == pytest.approx([1.0 if counts else norm, 0.0])


# ONI ---------------------------------------------------------------------------------------------


def centred(Z: Tensor) -> np.ndarray:
    return Z.numpy() - Z.numpy().mean(1, keepdims=True)


@pytest.mark.parametrize("T", range(1, 8))
@pytest.mark.parametrize("shape", [(16, 27), (40, 16), (12, 12), (1, 9)], ids=str)
def test_oni_maps_singular_values_and_keeps_singular_vectors(shape, T):
    Z = randn(*shape)
    U, s, Vh = svd(torch.from_numpy(centred(Z)))
    s = s / np.sqrt(np.sqrt((s**4).sum()))  # |Z Z'|_F = sqrt(sum s^4)
    for _ in range(T):
        s = 1.5 * s - 0.5 * s**3
    assert gap(functional.oni(Z, T), (U * s) @ Vh) < 1e-13
    assert gap(svd(functional.oni(Z, T))[1], np.sort(s)[::-1]) < 1e-13


def by_the_papers_iteration(Z: Tensor, T: int) -> np.ndarray:
    """B <- 1.5 B - 0.5 B^3 S on the short side, as in Algorithm 1 of [15]."""
    X = centred(Z) if Z.shape[0] <= Z.shape[1] else centred(Z).T
    S = X @ X.T
    size = np.sqrt((S**2).sum())
    B = np.eye(len(S))
    for _ in range(T):
        B = 1.5 * B - 0.5 * B @ B @ B @ (S / size)
    W = B @ X / np.sqrt(size)
    return W if Z.shape[0] <= Z.shape[1] else W.T


@pytest.mark.parametrize("T", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(16, 27), (40, 16)], ids=str)
def test_oni_is_the_papers_iteration_on_the_inverse_root(shape, T):
    assert gap(functional.oni(randn(*shape), T), by_the_papers_iteration(randn(*shape), T)) < 1e-11


def test_oni_of_a_tall_he_matrix_is_not_the_released_column_branch():
    Z = randn(256, 64) * (2 / 256) ** 0.5
    ours = svd(functional.oni(Z, T=2))[1][:-1]  # centring leaves the last one 0
    assert 0.34 < ours.min() < 0.38
    assert 0.85 < ours.max() < 0.89
    S = centred(Z).T @ centred(Z)  # the release forgets S / |S|_F here
    B = 1.5 * np.eye(64) - 0.5 * S
    B = 1.5 * B - 0.5 * B @ B @ B @ S
    released = np.linalg.svd(centred(Z) @ B / np.sqrt(np.linalg.norm(S)), compute_uv=False)[:-1]
    assert released.max() < 0.25


def plain_newton(Z: Tensor, T: int) -> Tensor:
    """X <- 1.5 X - 0.5 X X' X, the Gram matrix formed anew in every iteration."""
    X = Z - Z.mean(-1, keepdim=True)
    X = X / torch.linalg.matrix_norm(X @ X.mT).sqrt()[..., None, None]
    for _ in range(T):
        X = 1.5 * X - 0.5 * X @ X.mT @ X
    return X


@pytest.mark.parametrize("T", [1, 4, 5, 6, 10, 11])  # around the five iterations that share a Gram matrix
@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (10, 20), (10, 19), (9, 9), (1, 9), (3, 8, 40)], ids=str)
def test_oni_and_its_gradient_are_the_plain_iterations(shape, T):
    Z, G = randn(*shape).requires_grad_(), randn(*shape, seed=1)
    ours, plain = functional.oni(Z, T), plain_newton(Z, T)
    assert gap(ours, plain) < 1e-12
    assert gap(*(torch.autograd.grad(value, Z, G)[0] for value in (ours, plain))) < 1e-11


@pytest.mark.parametrize("smallest", [1, 1e-2, 1e-4, 1e-8, 0])
@pytest.mark.parametrize("shape", [(32, 288), (288, 32)], ids=str)
def test_oni_on_the_gram_matrix_is_in_float32_as_accurate_as_on_the_weight(shape, smallest):
    U, s, Vh = svd(torch.from_numpy(centred(randn(*shape))))
    s = np.geomspace(1, smallest, 32) if smallest else np.repeat([1.0, 0.0], 16)
    Z = torch.from_numpy((U * s) @ Vh).float()
    U, s, Vh = svd(torch.from_numpy(centred(Z.double())))
    s = s / np.sqrt(np.sqrt((s**4).sum()))
    for T in range(1, 31):
        s = 1.5 * s - 0.5 * s**3
        W = torch.from_numpy((U * s) @ Vh)
        ours, plain = (torch.linalg.matrix_norm(f(Z, T) - W, ord=2) for f in (functional.oni, plain_newton))
        assert ours < 2 * plain + 3e-6, T  # rounding grows by 1.5 an iteration in either


@pytest.mark.parametrize("size", [1e-9, 1e-3, 1e3, 1e9])
def test_oni_ignores_the_size_of_its_parameter(size):
    assert gap(functional.oni(size * randn(6, 12)), functional.oni(randn(6, 12))) < 1e-13


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5)], ids=str)
def test_gradient_of_oni(shape):
    assert gradcheck(partial(functional.oni, T=3), randn(*shape).requires_grad_())


# OLM ---------------------------------------------------------------------------------------------


def test_filters_of_an_olm_group_are_orthonormal_and_sum_to_zero():
    Z = randn(150, 144)
    V = functional.olm(Z)
    for group in V.split([64, 64, 22]):
        assert gap(group @ group.T, np.eye(len(group))) < 1e-6
    assert gap(V.sum(1), np.zeros(150)) < 1e-11
    assert gap(V[:64] @ V[64:128].T, 0.0) > 0.01  # but not across groups
    assert gap(functional.olm(37.0 * Z), V) < 1e-6
    assert gap(functional.olm(37.0 * Z, eps=0.0), functional.olm(Z, eps=0.0)) < 1e-12


def test_olm_is_scipys_inverse_root():
    Z = centred(randn(12, 27))
    covariance = Z @ Z.T / 27 + 1e-8 * np.eye(12)
    expected = fractional_matrix_power(covariance, -0.5) @ Z / np.sqrt(27)
    assert gap(functional.olm(randn(12, 27)), expected) < 1e-12


DEGENERATE = {
    "as many filters as inputs": randn(16, 16),
    "more filters than inputs": randn(20, 9),
    "two equal filters": randn(6, 27)[[0, 1, 2, 2, 3, 4]],
    "all filters equal": randn(1, 27).repeat(6, 1),
    "a zero filter": randn(6, 27) * torch.tensor([1, 1, 1, 0, 1, 1])[:, None],
    "all zero": torch.zeros(6, 27, dtype=torch.float64),
    "one input": randn(5, 1),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_filters_are_orthogonalized_with_finite_gradients(case, dtype):
    for function in (functional.olm, functional.oni):
        Z = DEGENERATE[case].to(dtype, copy=True).requires_grad_()
        value = function(Z)
        assert torch.linalg.matrix_norm(value, ord=2).item() < 1 + 1e-4
        (value * randn(*Z.shape, seed=1).to(dtype)).sum().backward()
        assert Z.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_filters_can_be_projected(case, dtype):
    Z = DEGENERATE[case].to(dtype)
    assert gap(functional.row_normalize(Z).norm(dim=1), Z.any(1).double()) < 1e-6
    assert gap(svd(functional.stiefel_retract(Z))[1], np.ones(min(Z.shape))) < 1e-6


@pytest.mark.parametrize(
    "Z", [randn(4, 9), torch.eye(4, 9, dtype=torch.float64)], ids=["random", "equal singular values but for one"]
)
def test_gradient_of_olm(Z):
    assert gradcheck(functional.olm, Z.clone().requires_grad_())
    assert gradcheck(partial(functional.olm, group_size=3), Z.clone().requires_grad_())


def test_gradient_of_olm_at_exactly_equal_singular_values():
    hadamard = torch.tensor([[1.0, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=torch.float64)
    assert torch.equal(hadamard @ hadamard.T, 4 * torch.eye(3, dtype=torch.float64))  # rows sum to 0 too
    assert gradcheck(functional.olm, hadamard.requires_grad_())
    assert gradcheck(lambda A: functional.InverseSqrt.apply((A + A.T) / 2), torch.eye(4).double().requires_grad_())


@pytest.mark.parametrize("shape", [(6, 6), (7, 4)], ids=str)
@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_gradient_of_olm_with_no_full_rank(shape, eps):
    """Rank p - 1, as any group of p filters or more has: missing directions stay missing, so a derivative exists."""
    assert gradcheck(partial(functional.olm, eps=eps), randn(*shape).requires_grad_(), atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 27), (16, 16), (20, 9)], ids=str)
def test_gradient_of_olm_in_float32_is_that_in_float64(shape):
    gradients = []
    for dtype in (torch.float32, torch.float64):
        Z = randn(*shape).to(dtype).requires_grad_()
        (functional.olm(Z) * randn(*shape, seed=1)).sum().backward()
        gradients.append(Z.grad.double())
    assert gap(*gradients) < 1e-3 * gradients[1].abs().max().item()


# the oblique manifold ----------------------------------------------------------------------------


def test_row_normalize_is_idempotent_and_keeps_a_zero_row():
    V = randn(6, 27)
    V[2] = 0
    once = functional.row_normalize(V)
    assert gap(once.norm(dim=1), [1, 1, 0, 1, 1, 1]) < 1e-15
    assert gap(functional.row_normalize(once), once) < 1e-15


def test_the_oblique_tangent_is_orthogonal_to_every_filter_and_the_nearest_such():
    V, G = functional.row_normalize(randn(6, 27)), randn(6, 27, seed=1)
    tangent = functional.tangent_oblique(V, G)
    assert gap((tangent * V).sum(1), np.zeros(6)) < 1e-15
    assert gap(functional.tangent_oblique(V, tangent), tangent) < 1e-15
    for w, g, t in zip(V.numpy(), G.numpy(), tangent.numpy(), strict=True):
        assert gap(t, (np.eye(27) - np.outer(w, w)) @ g) < 1e-14


@pytest.fixture
def geoopt():
    import geoopt

    return geoopt


def one_step(method: type, W: Tensor, G: Tensor) -> Tensor:
    model = conv_of(W)
    reg = method(model)
    assert gap(matrix(model), W) < 1e-14  # building it moves no point of the set
    model[0].weight.grad = G.clone()[:, :, None, None]
    reg.before_step()
    torch.optim.SGD(model.parameters(), lr=0.3).step()
    reg.after_step()
    return matrix(model)


def test_an_oblique_step_is_geoopts_on_the_sphere(geoopt):
    V, G = functional.row_normalize(randn(6, 27)), randn(6, 27, seed=1)
    theirs = geoopt.ManifoldParameter(V.clone(), manifold=geoopt.Sphere())
    theirs.grad = G.clone()
    geoopt.optim.RiemannianSGD([theirs], lr=0.3).step()
    assert gap(one_step(normloss.RiemannianOblique, V, G), theirs) < 1e-15


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_oblique_descent_is_projection_behind_a_batch_norm_and_only_there(momentum):
    far = {}
    for batch_norm in (True, False):
        riemannian, projected = network(batch_norm), network(batch_norm)
        train(riemannian, normloss.RiemannianOblique(riemannian), momentum=momentum)
        train(projected, normloss.PBWN(projected), momentum=momentum)
        pairs = zip(riemannian.parameters(), projected.parameters(), strict=True)
        far[batch_norm] = max(gap(a, b) for a, b in pairs)
        assert gap(riemannian[0].weight, network(batch_norm)[0].weight) > 0.1  # they did move
    assert far[True] < 1e-11
    assert far[False] > 1e-3


# the Stiefel manifold ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", THREE, ids=str)
def test_the_stiefel_retraction_is_scipys_qr_with_positive_diagonal(shape):
    X = randn(*shape).numpy()
    Q, R = qr(X.T if shape[0] <= shape[1] else X, mode="economic")
    Q = Q * np.sign(np.diag(R))
    assert gap(functional.stiefel_retract(randn(*shape)), Q.T if shape[0] <= shape[1] else Q) < 1e-13


@pytest.mark.parametrize("shape", THREE, ids=str)
def test_a_stiefel_step_is_geoopts(geoopt, shape):
    """geoopt's points are tall, and its batches are all axes but the last two."""
    V, G = orthonormal(*shape), randn(*shape, seed=1)
    wide = shape[0] <= shape[1]
    X, H = (V.T.contiguous(), G.T.contiguous()) if wide else (V, G)
    manifold = geoopt.Stiefel(canonical=False)
    tangent = manifold.egrad2rgrad(X, H)
    assert gap(functional.tangent_stiefel(V, G), tangent.T if wide else tangent) < 1e-14
    assert gap(functional.stiefel_retract(V + G), manifold.retr(X, H).T if wide else manifold.retr(X, H)) < 1e-13

    theirs = geoopt.ManifoldParameter(X.clone(), manifold=manifold)
    theirs.grad = H.clone()
    geoopt.optim.RiemannianSGD([theirs], lr=0.3).step()
    assert gap(one_step(normloss.Stiefel, V, G), theirs.T if wide else theirs) < 1e-13


@pytest.mark.parametrize("shape", THREE, ids=str)
def test_the_stiefel_tangent_has_no_symmetric_part(shape):
    V = orthonormal(*shape)
    tangent = functional.tangent_stiefel(V, randn(*shape, seed=1))
    A = V @ tangent.T if shape[0] <= shape[1] else V.T @ tangent
    assert gap(A + A.T, np.zeros(A.shape)) < 1e-14
    assert gap(functional.tangent_stiefel(V, tangent), tangent) < 1e-14


@pytest.mark.parametrize("shape", [(16, 27), (27, 16), (16, 16)], ids=str)
def test_a_thousand_random_float32_steps_stay_on_the_stiefel_manifold(shape):
    model = conv_of(randn(*shape).float())
    reg = normloss.Stiefel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(1000):
        model[0].weight.grad = torch.randn(model[0].weight.shape, generator=generator)
        reg.before_step()
        optimizer.step()
        reg.after_step()
    V = matrix(model).double()
    gram = V @ V.T if shape[0] <= shape[1] else V.T @ V
    assert gap(gram, np.eye(min(shape))) < 1e-5


@pytest.mark.parametrize("shape", THREE, ids=str)
def test_stiefel_points_are_torchs_and_geotorchs_orthogonal_matrices(shape):
    import geotorch

    ours = functional.stiefel_retract(randn(*shape))
    assert geotorch.Stiefel(shape).in_manifold(ours, eps=1e-12)
    assert not geotorch.Stiefel(shape).in_manifold(randn(*shape), eps=1e-2)
    for library in (parametrizations.orthogonal, geotorch.orthogonal):
        layer = nn.Linear(shape[1], shape[0]).double()
        library(layer)
        theirs = layer.weight.detach()
        assert gap(functional.stiefel_retract(theirs), theirs) < 1e-5  # geotorch's base is drawn in float32
        layer.weight = ours
        assert gap(layer.weight, ours) < 1e-12


# weight normalization ----------------------------------------------------------------------------


def test_weight_norm_is_torchs_and_starts_as_the_plain_convolution():
    plain, ours, theirs = network(), network(), network()
    normloss.WeightNorm(ours)
    for k in (0, 3):
        parametrizations.weight_norm(theirs[k], dim=0)
    x, y = batch()
    assert gap(ours(x), plain(x)) < 1e-13
    single = network().float()
    normloss.WeightNorm(single)
    assert gap(single[0].weight, network().float()[0].weight) < 1e-6
    for model in (ours, theirs):
        train(model, normloss.Regularizer(model), steps=5)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    V, g = ours[0].parametrizations.weight.original1, ours[0].parametrizations.weight.original0
    assert gap(ours[0].weight.flatten(1).norm(dim=1), g.flatten().abs()) < 1e-14
    ours.zero_grad()
    F.cross_entropy(ours(x), y).backward()
    assert V.grad.abs().max() > 1e-4
    assert gap((V.grad * V).flatten(1).sum(1), np.zeros(8)) < 1e-14


def test_weight_norm_of_scale_one_has_unit_filters_and_a_batch_norm_does_not_see_it():
    plain, unit = network(), network()
    normloss.WeightNorm(unit, scale=1.0)
    x, _ = batch()
    assert gap(unit[0].weight.flatten(1).norm(dim=1), np.ones(8)) < 1e-14
    assert gap(plain[0].weight.flatten(1).norm(dim=1), np.ones(8)) > 0.1
    assert gap(unit(x), plain(x)) < 1e-12


def test_weight_normalization_behind_a_batch_norm_trains_the_function_of_no_regularizer():
    outputs = []
    for method in (normloss.WeightNorm, normloss.Regularizer):
        model = network()
        train(model, method(model), steps=4)
        outputs.append(model(randn(12, 3, 6, 6, seed=2)))
    assert gap(*outputs) < 1e-10


# the Jacobian ------------------------------------------------------------------------------------


def jacobian_loss(model: nn.Module, x: Tensor, **options) -> Tensor:
    x = x.clone().requires_grad_()
    return normloss.JacobianPenalty(model, **options).loss(x, model(x))


def exact(model: nn.Module, x: Tensor) -> Tensor:
    """1/2 mean over images of |d logits / d x|_F^2, one image after the other."""
    jacobians = [torch.autograd.functional.jacobian(model, image[None], create_graph=True) for image in x]
    return sum(jacobian.square().sum() for jacobian in jacobians) / len(x) / 2


def test_all_directions_give_the_jacobians_norm():
    model, (x, _) = network(batch_norm=False), batch()
    reg = normloss.JacobianPenalty(model, lam=0.1, n_proj=-1)
    loss = reg.loss(x.requires_grad_(), model(x)).item()
    assert loss == reg.value().item() == pytest.approx(0.1 * exact(model, x).item(), rel=1e-12)


def test_all_directions_behind_a_batch_norm_include_the_other_images():
    model, (x, _) = network(), batch()
    J = torch.autograd.functional.jacobian(model, x)  # (B, K, B, 3, 6, 6)
    expected = 0.1 * 0.5 * J.sum(0).square().sum().item() / len(x)
    assert jacobian_loss(model, x, lam=0.1, n_proj=-1).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n_proj", [1, 3])
def test_random_directions_are_right_on_average(n_proj):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    x = randn(1, 5)
    draws = np.array([jacobian_loss(model, x.repeat(500, 1), lam=1.0, n_proj=n_proj, seed=k).item() for k in range(40)])
    error = draws.std(ddof=1) / np.sqrt(len(draws))
    assert 0 < error < 0.02 * draws.mean()
    assert abs(draws.mean() - exact(model, x).item()) < 4 * error


def test_the_gradient_of_the_jacobian_penalty_is_that_of_the_exact_formula():
    ours, theirs = network(batch_norm=False), network(batch_norm=False)
    for model in (ours, theirs):
        for k in (2, 5):
            model[k] = nn.Tanh()  # curved: ReLU has no second derivative
    x, _ = batch()
    jacobian_loss(ours, x, lam=0.1, n_proj=-1).backward()
    (0.1 * exact(theirs, x)).backward()
    for a, b in zip(weights(ours), weights(theirs), strict=True):
        assert b.grad.abs().max() > 1e-6
        assert gap(a.grad, b.grad) < 1e-12 * b.grad.abs().max().item()


@pytest.mark.parametrize("n_proj", [1, -1])
def test_the_jacobian_penalty_of_an_empty_batch_is_zero(n_proj):
    x = randn(0, 3, 6, 6)
    assert float(jacobian_loss(network(batch_norm=False), x, lam=0.1, n_proj=n_proj)) == 0


# projections -------------------------------------------------------------------------------------


def norms(model: nn.Sequential) -> Tensor:
    return torch.cat([weight.detach().flatten(1).norm(dim=1) for weight in weights(model)[:2]])


def when_projected(every: int | str) -> tuple[list[int], bool]:
    """The steps of seven behind which filters have unit norm, and whether after_epoch() then gives them it."""
    model = network(batch_norm=False)
    reg = normloss.PBWN(model, every=every)

    def unit_after(move) -> bool:
        for weight in weights(model)[:2]:
            weight.data.mul_(1.5)
        move()
        return gap(norms(model), np.ones(14)) < 1e-12

    return [step for step in range(1, 8) if unit_after(reg.after_step)], unit_after(reg.after_epoch)


def test_projections_come_when_asked_for():
    assert when_projected(1) == ([1, 2, 3, 4, 5, 6, 7], False)
    assert when_projected(3) == ([3, 6], False)
    assert when_projected("epoch") == ([], True)


# norm dynamics without a task gradient: r <- r - 2 lr lam (r - 1) --------------------------------


def filter_of_norm(r: float) -> nn.Linear:
    layer = nn.Linear(9, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.mul_(r / layer.weight.norm())
    return layer


def shrink(layer: nn.Linear, optimizer, reg) -> None:
    layer.weight.grad = torch.zeros_like(layer.weight)
    reg.before_step()
    optimizer.step()


@pytest.mark.parametrize("r0", [2**0.5, 0.3])
def test_norms_approach_one_exactly_geometrically(r0):
    layer = filter_of_norm(r0)
    direction = layer.weight.detach() / r0
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    reg = normloss.NormLoss(layer, lam=0.05)
    for t in range(1, 101):
        shrink(layer, optimizer, reg)
        r = layer.weight.norm().item()
        assert r - 1 == pytest.approx((1 - 2 * 0.1 * 0.05) ** t * (r0 - 1), rel=1e-11)
    torch.testing.assert_close(layer.weight.detach() / r, direction, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("lam", "steps"), [(1e-2, 94), (1e-3, 1046), (5e-4, 2103)])
def test_steps_from_he_initialisation_to_nearly_one(lam, steps):
    """methods.md 2.3: from sqrt(2) to 1.05 at lr 0.1 and momentum 0.9."""
    layer = filter_of_norm(2**0.5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    reg = normloss.NormLoss(layer, lam=lam)
    taken = 0
    while layer.weight.norm().item() > 1.05:
        shrink(layer, optimizer, reg)
        taken += 1
    assert taken == pytest.approx(steps, abs=1)
