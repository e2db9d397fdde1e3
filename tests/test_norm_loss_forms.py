"""Norm loss on stacked filters against autograd in float64, on a CPU and as on other devices."""

import pytest
import torch
from torch import nn

import normloss
from normloss.regularizers import stacked
from tests.closed_form import with_zero_gradients

LAYOUTS = [torch.contiguous_format, torch.channels_last]
TOLERANCES = {
    torch.float64: {"rtol": 1e-13, "atol": 1e-14},
    torch.float32: {"rtol": 1e-6, "atol": 1e-6},
    torch.bfloat16: {"rtol": 2**-8, "atol": 2**-9},  # half a unit in the last place: rounded once
    torch.float16: {"rtol": 2**-11, "atol": 2**-12},
}


@pytest.fixture(params=["cpu", "small scratch", "other devices"])
def device(request, monkeypatch):
    """As norm loss is computed on a CPU, with some weights larger than the scratch, and as elsewhere."""
    if request.param == "small scratch":
        monkeypatch.setattr(stacked, "SCRATCH", 200)
    if request.param == "other devices":
        monkeypatch.setattr(stacked, "on_cpu", lambda weight: False)


on_every_device = pytest.mark.usefixtures("device")


def network(dtype=torch.float64, layout=torch.contiguous_format) -> nn.ModuleList:
    """Wide and tall, grouped, depthwise, 1x1, one to three dimensions, tied, strided, a zero filter."""
    torch.manual_seed(0)
    convolutions = [
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 40, 1),
        nn.Conv2d(1, 5, 3), nn.Conv1d(3, 4, 3), nn.Conv3d(1, 2, (1, 3, 3)),
    ]  # fmt: skip
    linear = [nn.Linear(9, 30), nn.Linear(9, 30), nn.Linear(12, 1), nn.Linear(7, 5)]
    model = nn.ModuleList([*convolutions, *linear])
    model[8].weight = model[7].weight
    model[10].weight = nn.Parameter(torch.randn(7, 5).t())
    model = in_layout(model.to(dtype), layout)
    with torch.no_grad():
        model[2].weight[3] = 0
        model[7].weight[0] *= 1e3
        model[0].weight[1] *= 1e-4
    return model


def in_layout(model: nn.ModuleList, layout: torch.memory_format) -> nn.ModuleList:
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            layer.to(memory_format=layout)
    return model


def assert_one_step_is_autograds(model: nn.Module, reg: normloss.NormLoss) -> None:
    """before_step() on random gradients, where there are any, against equation 7 in float64."""
    expected = []
    for parameter in model.parameters():
        w = parameter.detach().double().requires_grad_()
        loss = reg.lam * (1 - w.flatten(1).norm(dim=1)).square().sum() if w.ndim > 1 else 0 * w.sum()
        (gradient,) = torch.autograd.grad(loss, w)
        if parameter.grad is not None:
            parameter.grad = torch.randn_like(parameter)
            gradient = gradient + parameter.grad
        expected.append(gradient)
    reg.before_step()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad.double(), gradient, **TOLERANCES[parameter.dtype])


@on_every_device
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_norm_loss_is_autograds_gradient(dtype, layout):
    model = with_zero_gradients(network(dtype, layout))
    assert_one_step_is_autograds(model, normloss.NormLoss(model, lam=0.3))


@on_every_device
def test_each_step_takes_the_weights_that_have_a_gradient_and_lam_as_they_are():
    model = network()
    reg = normloss.NormLoss(model, lam=0.3)
    for without, lam in [((0, 7), 0.3), ((), 0.02), ((3,), 1)]:
        with_zero_gradients(model)
        for k in without:
            model[k].weight.grad = None
        with torch.no_grad():
            model[4].weight.mul_(1.5)
        reg.lam = lam
        assert_one_step_is_autograds(model, reg)
        assert all(model[k].weight.grad is None for k in without)


@on_every_device
def test_a_model_that_changes_after_the_first_step_is_served_as_it_is_then():
    model = with_zero_gradients(network(torch.float32))
    reg = normloss.NormLoss(model, lam=0.3)
    reg.before_step()
    assert_one_step_is_autograds(with_zero_gradients(in_layout(model.double(), torch.channels_last)), reg)


def test_weights_of_two_precisions_are_served_together():
    model = with_zero_gradients(nn.ModuleList([network(torch.float32), network(torch.float64)]))
    assert_one_step_is_autograds(model, normloss.NormLoss(model, lam=0.3))


@on_every_device
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_weights_of_1e25_are_pulled_alike_and_finite(layout):
    model = nn.ModuleList([nn.Conv2d(2, 3, 3), nn.Linear(4, 2), nn.Linear(4, 2)]).to(memory_format=layout)
    for parameter in with_zero_gradients(model).parameters():
        torch.nn.init.constant_(parameter, 1e25)
    normloss.NormLoss(model, lam=0.25).before_step()
    for layer in model:
        torch.testing.assert_close(layer.weight.grad, torch.full_like(layer.weight, 5e24))
