"""The emulation of a GPU's precisions on a CPU (benchmarks/precision.py): what it rounds, and what that does."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.precision import BITS, Rounded, deviations, rounded


def test_seven_bits_are_bfloat16():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-20, 20, 10_000)
    assert torch.equal(rounded(x, BITS["bf16"]), x.bfloat16().float())


def test_ten_bits_are_at_most_half_a_unit_off():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    off = ((rounded(x, BITS["tf32"]) - x) / x).abs()
    assert 0.9 * 2**-11 < off.max() <= 2**-11
    exact = torch.tensor([1.0, -2.0, 0.0, 1 + 2**-10, 1023.0])
    assert torch.equal(rounded(exact, 10), exact)


def test_products_are_rounded_forward_and_backward_and_nothing_else():
    x, W = torch.randn(8, 3, 6, 6, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    g = torch.randn(8, 4, 4, 4)
    with Rounded(10):
        y = F.conv2d(x, W)
        y.backward(g)
        assert torch.equal(x * 1.1, x.detach() * 1.1)
    a, b = (rounded(t.detach(), 10).requires_grad_() for t in (x, W))
    z = F.conv2d(a, b)
    z.backward(rounded(g, 10))
    torch.testing.assert_close((y, x.grad, W.grad), (z, a.grad, b.grad), rtol=1e-5, atol=1e-5)
    assert not torch.equal(y, F.conv2d(x, W))


@pytest.mark.slow
def test_fewer_bits_are_further_from_float32():
    """Of the numbers in docs/decisions.md."""
    path = deviations()
    first = {name: values[0] for name, values in path.items()}
    assert first["another order"] < 1e-5 < 0.01 < first["tf32"] < 0.1
    assert first["tf32"] < first["bf16"] < 0.3
    assert path["another order"][-1] < path["tf32"][-1] < 1
