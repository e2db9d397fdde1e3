"""The maths against hand-computed numbers and autograd in float64."""

import pytest
import torch

from normloss import functional

SHAPES = {"wide": (4, 27), "tall": (27, 4), "square": (9, 9), "one row": (1, 12), "one column": (7, 1)}


@pytest.fixture(params=SHAPES, ids=str)
def W(request):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SHAPES[request.param], generator=generator, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("name", ["norm_loss", "weight_decay"])
def test_closed_form_is_the_gradient(name, W):
    (gradient,) = torch.autograd.grad(getattr(functional, name)(W), W)
    torch.testing.assert_close(getattr(functional, f"{name}_grad")(W.detach()), gradient, rtol=1e-12, atol=1e-14)


def test_norm_loss_by_hand():
    W = torch.tensor([[3.0, 4.0], [0.0, 0.5]], dtype=torch.float64)  # norms 5 and 1/2
    assert functional.norm_loss(W).item() == pytest.approx(16 + 0.25)
    expected = torch.tensor([[2 * 3 * 0.8, 2 * 4 * 0.8], [0.0, 2 * 0.5 * (1 - 2)]], dtype=torch.float64)
    torch.testing.assert_close(functional.norm_loss_grad(W), expected)


def test_weight_decay_by_hand():
    W = torch.tensor([[3.0, 4.0], [0.0, 0.5]])
    assert functional.weight_decay(W).item() == 25.25
    assert functional.weight_decay_grad(W).tolist() == [[6.0, 8.0], [0.0, 1.0]]


def test_norm_loss_of_a_zero_filter_has_no_gradient():
    W = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(functional.norm_loss(W), W)
    assert gradient.eq(0).all()
    assert functional.norm_loss_grad(W.detach()).eq(0).all()
    assert functional.norm_loss(W).item() == 2.0


def test_norm_loss_ignores_the_order_of_a_filters_weights():
    W = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    shuffled = W.flatten(1)[:, torch.randperm(100)]
    torch.testing.assert_close(functional.norm_loss(W.flatten(1)), functional.norm_loss(shuffled))


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


def test_mutual_coherence_of_an_embedding_fits_in_memory():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            made = operation(*args, **(kwargs or {}))
            for tensor in made if isinstance(made, tuple | list) else [made]:
                if isinstance(tensor, torch.Tensor):
                    self.elements = max(self.elements, tensor.numel())
            return made

    W = torch.randn(4000, 50, generator=torch.Generator().manual_seed(0))  # 16 million pairs
    with Largest() as largest:
        functional.mc_grad(W)
        functional.mc(W)
    assert largest.elements <= max(functional.ENTRIES, 2 * W.numel())
