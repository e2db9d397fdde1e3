"""The protocol, layer selection, and the paper's norm dynamics (methods: none, wd, nl)."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normloss
from normloss.regularizers import REGULARIZERS, build, select_layers
from normloss.training.schedules import lam_at


def mixed_network() -> nn.Module:
    """Plain, grouped, depthwise and 1x1 convolutions, batch norm, biases, a linear head."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 12, 3, padding=1, groups=4),
        nn.Conv2d(12, 6, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 3, 8, 8, generator=generator), torch.randint(5, (16,), generator=generator)


def sgd(model: nn.Module, **options) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, **options)


def train(model, optimizer, steps, loss=None, before=None, after=None) -> None:
    x, y = (tensor.to(next(model.parameters()).dtype) if tensor.is_floating_point() else tensor for tensor in batch())
    for _ in range(steps):
        optimizer.zero_grad()
        total = F.cross_entropy(model(x), y)
        (total + loss() if loss else total).backward()
        if before:
            before()
        optimizer.step()
        if after:
            after()


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in model.parameters()]


METHODS = {
    "nl": lambda model: normloss.NormLoss(model, lam=0.05),
    "nl conv": lambda model: normloss.NormLoss(model, lam=0.05, layers="conv"),
    "wd": lambda model: normloss.WeightDecay(model, lam=0.05),
    "wd half": lambda model: normloss.WeightDecay(model, lam=0.05, half=True, layers="conv+linear"),
    "chain": lambda model: normloss.Chain(
        normloss.NormLoss(model, lam=0.05), normloss.WeightDecay(model, lam=1e-3, half=True)
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_before_step_adds_the_gradient_of_value(method):
    model = mixed_network().double()
    reg = METHODS[method](model)
    reg.value().backward()
    expected = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    reg.before_step()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_three_steps_equal_the_penalty_in_the_loss(method):
    ours, reference = mixed_network().double(), mixed_network().double()
    reg, penalty = METHODS[method](ours), METHODS[method](reference)
    train(ours, sgd(ours), 3, before=reg.before_step, after=reg.after_step)
    train(reference, sgd(reference), 3, loss=penalty.value)
    for a, b in zip(weights(ours), weights(reference), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_hook_equals_explicit_calls(method):
    explicit, hooked = mixed_network(), mixed_network()
    reg = METHODS[method](explicit)
    train(explicit, sgd(explicit), 3, before=reg.before_step, after=reg.after_step)
    optimizer = sgd(hooked)
    handle = METHODS[method](hooked).hook(optimizer)
    train(hooked, optimizer, 3)
    assert all(torch.equal(a, b) for a, b in zip(weights(explicit), weights(hooked), strict=True))

    handle.remove()
    kept = copy.deepcopy(hooked)
    train(hooked, optimizer, 1)
    plain = sgd(kept)
    plain.load_state_dict(optimizer.state_dict())
    assert not all(torch.equal(a, b) for a, b in zip(weights(hooked), weights(kept), strict=True))


def test_hook_works_with_a_closure_as_lightning_calls_it():
    explicit, hooked = mixed_network(), mixed_network()
    reg = normloss.NormLoss(explicit, lam=0.05)
    train(explicit, sgd(explicit), 1, before=reg.before_step)
    optimizer = sgd(hooked)
    normloss.NormLoss(hooked, lam=0.05).hook(optimizer)
    x, y = batch()

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(hooked(x), y)
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0
    assert all(torch.equal(a, b) for a, b in zip(weights(explicit), weights(hooked), strict=True))


def test_hook_under_gradscaler_sees_unscaled_gradients_and_skips_inf():
    model, scaled = mixed_network(), mixed_network()
    reg = normloss.NormLoss(model, lam=0.05)
    train(model, sgd(model), 1, before=reg.before_step)
    optimizer = sgd(scaled)
    normloss.NormLoss(scaled, lam=0.05).hook(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x, y = batch()
    scaler.scale(F.cross_entropy(scaled(x), y)).backward()
    scaler.step(optimizer)
    scaler.update()
    for a, b in zip(weights(model), weights(scaled), strict=True):
        torch.testing.assert_close(a, b)

    before = [weight.clone() for weight in weights(scaled)]
    scaler.scale(F.cross_entropy(scaled(x), y) * float("inf")).backward()
    scaler.step(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(scaled), strict=True))


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("half", "sgd_weight_decay"), [(False, 0.04), (True, 0.02)])
def test_weight_decay_is_sgds_with_twice_lam_or_with_half_lam_itself(nesterov, half, sgd_weight_decay):
    ours, torchs = mixed_network().double(), mixed_network().double()
    reg = normloss.WeightDecay(ours, lam=0.02, half=half)
    train(ours, sgd(ours, nesterov=nesterov), 10, before=reg.before_step)
    train(torchs, sgd(torchs, nesterov=nesterov, weight_decay=sgd_weight_decay), 10)
    for a, b in zip(weights(ours), weights(torchs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


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


# layers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("conv", ["0", "3", "4", "5"]),
        ("conv+linear", ["0", "3", "4", "5", "8"]),
        ("all", ["0", "3", "4", "5", "8"]),
        ("first", ["0"]),
        (lambda name, module: name in ("3", "8"), ["3", "8"]),
    ],
)
def test_layers_are_selected_by_module_type(layers, names):
    assert list(select_layers(mixed_network(), layers)) == names


def test_tied_weights_count_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert list(select_layers(model, "conv+linear")) == ["0"]


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("convs", "layers must be conv, conv\\+linear, linear, all, .* got 'convs': no layer with filters"),
        (lambda name, module: isinstance(module, nn.BatchNorm2d), "layer '1' \\(BatchNorm2d\\) has no weight"),
        (lambda name, module: False, "no layer of Sequential matches"),
    ],
)
def test_wrong_layers_are_refused(layers, words):
    with pytest.raises(ValueError, match=words):
        normloss.NormLoss(mixed_network(), lam=0.1, layers=layers)


def test_what_is_no_number_and_no_module_is_refused():
    with pytest.raises(ValueError, match="lam must be finite, got inf"):
        normloss.NormLoss(mixed_network(), lam=float("inf"))
    with pytest.raises(ValueError, match=r"model must be a torch.nn.Module, got generator"):
        normloss.NormLoss(mixed_network().parameters(), lam=0.1)


@pytest.mark.parametrize("lam", [-0.1, float("nan")])
def test_negative_lam_is_refused(lam):
    with pytest.raises(ValueError, match="lam must be at least 0"):
        normloss.NormLoss(mixed_network(), lam=lam)


def test_norm_loss_leaves_batch_norm_and_biases_alone():
    model = mixed_network()
    regularized = {id(weight) for weight in normloss.NormLoss(model, lam=0.1).weights}
    assert all(parameter.ndim > 1 for parameter in model.parameters() if id(parameter) in regularized)
    assert len(regularized) == 5


def test_weight_decay_covers_every_parameter():
    model = mixed_network()
    assert len(normloss.WeightDecay(model, lam=0.1).weights) == len(list(model.parameters()))


def test_frozen_weights_are_left_alone():
    model = mixed_network()
    model[0].weight.requires_grad_(False)
    kept = model[0].weight.clone()
    reg = normloss.NormLoss(model, lam=0.5)
    train(model, sgd(model), 2, before=reg.before_step)
    assert torch.equal(model[0].weight, kept)


def test_channels_last_weights_get_the_same_gradient():
    plain, last = mixed_network(), mixed_network().to(memory_format=torch.channels_last)
    for model in (plain, last):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        normloss.NormLoss(model, lam=0.05).before_step()
    for a, b in zip(plain.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


# built from a config -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REGULARIZERS)
def test_every_method_builds_and_steps_from_its_config(config, name):
    cfg = config("dataset=digits", "model=resnet8", f"reg={name}")
    model = mixed_network()
    reg = build(model, cfg.reg)
    train(model, sgd(model), 3, before=reg.before_step, after=reg.after_step)
    assert all(weight.isfinite().all() for weight in weights(model))
    assert reg.lam == cfg.reg.lam


def test_config_weight_decay_is_sgds(config):
    cfg = config("dataset=cifar10", "model=resnet110", "reg=wd")
    ours, torchs = mixed_network().double(), mixed_network().double()
    reg = build(ours, cfg.reg)
    train(ours, sgd(ours), 5, before=reg.before_step)
    train(torchs, sgd(torchs, weight_decay=1e-4), 5)
    for a, b in zip(weights(ours), weights(torchs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_norm_loss_with_weight_decay_beside_it(config):
    cfg = config("dataset=digits", "model=resnet8", "reg=nl", "reg.weight_decay=0.01")
    ours, torchs = mixed_network().double(), mixed_network().double()
    chain, alone = build(ours, cfg.reg), normloss.NormLoss(torchs, lam=0.01)
    train(ours, sgd(ours), 5, before=chain.before_step)
    with pytest.warns(UserWarning, match=r"NormLoss and SGD\(weight_decay=0.01\) both act on 0, 3, 4 and 2 more"):
        train(torchs, sgd(torchs, weight_decay=0.01), 5, before=alone.before_step)
    for a, b in zip(weights(ours), weights(torchs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_lam_follows_milestones_or_a_list(config):
    base = ("dataset=digits", "model=resnet8", "reg=nl", "reg.lam=0.1", "reg.lam_milestones=[3,5]")
    falling = config(*base, "reg.lam_gamma=0.1").reg
    assert [lam_at(falling, epoch) for epoch in (0, 2, 3, 4, 5, 19)] == pytest.approx(
        [0.1, 0.1, 1e-2, 1e-2, 1e-3, 1e-3]
    )
    listed = config(*base, "reg.lam_values=[0.2,0.05,0]").reg
    assert [lam_at(listed, epoch) for epoch in (0, 2, 3, 5)] == [0.2, 0.2, 0.05, 0.0]


def test_chain_needs_a_member():
    with pytest.raises(ValueError, match="at least one"):
        normloss.Chain()


def test_naive_autograd_penalty_written_out_gives_the_same_run():
    """Equation 7 as one would write it from the paper, beside the class."""
    ours, naive = mixed_network().double(), mixed_network().double()
    reg = normloss.NormLoss(ours, lam=1e-2)
    train(ours, sgd(ours), 20, before=reg.before_step)

    def penalty():
        layers = [module for module in naive if isinstance(module, nn.Conv2d | nn.Linear)]
        return 1e-2 * sum((1 - (layer.weight**2).flatten(1).sum(1).sqrt()).square().sum() for layer in layers)

    train(naive, sgd(naive), 20, loss=penalty)
    for a, b in zip(weights(ours), weights(naive), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
