"""Decoupled norm loss: after the step and by its learning rate, against its formula in float64."""

import copy
import warnings

import pytest
import torch
from torch import nn

from tests.closed_form import LR, assert_close, backward, batches, network, norm_loss, pull, sgd

OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.3, momentum=0.9),
    "two rates": lambda parameters: sgd([{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.02}]),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.0),
    "Muon": lambda parameters: torch.optim.Muon([p for p in parameters if p.ndim == 2], lr=0.02, weight_decay=0.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("hook", [True, False])
def test_decoupled_norm_loss_is_its_formula_after_the_plain_step_over_a_schedule(name, hook):
    ours, theirs = network(), network()
    reg = norm_loss(ours, decoupled=True)
    optimizers = [OPTIMIZERS[name](list(model.parameters())) for model in (ours, theirs)]
    schedules = [torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5) for optimizer in optimizers]
    if hook:
        reg.hook(optimizers[0])
    for batch in batches(8):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            model.zero_grad()
            backward(model, [batch])
            if model is ours and not hook:
                reg.before_step()
            optimizer.step()
        if not hook:
            ours.zero_grad()
            reg.after_step(optimizers[0])
        with torch.no_grad():
            for group in optimizers[1].param_groups:
                for p in group["params"]:
                    p -= group["lr"] * pull(p)
        for schedule in schedules:
            schedule.step()
    assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_decoupled_leaves_alone_what_has_no_gradient_and_what_is_frozen():
    model = network()
    optimizer = sgd(model.parameters())
    norm_loss(model, decoupled=True).hook(optimizer)
    kept = copy.deepcopy(model)
    model[2].weight.grad = torch.zeros_like(model[2].weight)
    model[0].weight.grad = None
    optimizer.step()
    assert torch.equal(model[0].weight, kept[0].weight)
    torch.testing.assert_close(model[2].weight, kept[2].weight - LR * pull(kept[2].weight))
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    model[0].weight.requires_grad_(False)
    optimizer.step()
    assert torch.equal(model[0].weight, kept[0].weight)


@pytest.mark.parametrize(("lr_lam", "factor"), [(0.25, 0.5), (0.5, 0.0), (0.75, -0.5), (1.0, -1.0)])
@pytest.mark.parametrize("of", [float, torch.tensor])
def test_a_decoupled_step_scales_the_distance_from_norm_one_and_warns_once_from_lr_lam_one_on(lr_lam, factor, of):
    layer = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.8, 2.4]]))  # norm 3
    reg = norm_loss(layer, lam=lr_lam, decoupled=True)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=of(1.0), weight_decay=0.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reg.after_step(optimizer)
        assert layer.weight.norm().item() == pytest.approx(abs(1 + factor * 2), rel=1e-5, abs=1e-6)
        reg.after_step(optimizer)
    assert len(caught) == (lr_lam >= 1)
