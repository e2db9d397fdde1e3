"""Each row of docs/in-your-training-loop.md: the right form trains as the penalty in the loss does."""

import copy

import pytest
import schedulefree
import timm.optim
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import normloss

LAM = 0.3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def batches(n: int = 4):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 4, generator=generator).double(), torch.randint(3, (8,), generator=generator)) for _ in range(n)
    ]


def penalty(model: nn.Module) -> Tensor:
    return LAM * sum((1 - layer.weight.norm(dim=1)).square().sum() for layer in model if isinstance(layer, nn.Linear))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def trained(make, *, hooked: bool, after=lambda optimizer: None) -> nn.Module:
    """With a hook, or with the penalty in the loss."""
    model = network()
    optimizer = make(model)
    if hooked:
        normloss.NormLoss(model, lam=LAM).hook(optimizer)
    after(optimizer)
    for x, y in batches():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        (loss if hooked else loss + penalty(model)).backward()
        optimizer.step()
    return model


def assert_close(a: nn.Module, b: nn.Module) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def lookahead(model):
    return timm.optim.Lookahead(sgd(model), k=2)


def schedule_free(model):
    optimizer = schedulefree.SGDScheduleFree(model.parameters(), lr=0.1)
    optimizer.train()
    return optimizer


class Private(torch.optim.Optimizer):
    """What Opacus does in short: gradients are clipped and noised, then another optimizer steps."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.original_optimizer = optimizer
        self.generator = torch.Generator().manual_seed(2)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.original_optimizer.zero_grad(set_to_none)

    def step(self, closure=None) -> None:
        for group in self.original_optimizer.param_groups:
            for parameter in group["params"]:
                noise = torch.randn(parameter.shape, generator=self.generator, dtype=parameter.dtype)
                parameter.grad.mul_(0.5).add_(noise, alpha=0.1)
        self.original_optimizer.step()


@pytest.mark.parametrize("make", [sgd, lookahead, schedule_free], ids=["SGD", "Lookahead", "schedule-free"])
def test_a_hook_trains_as_the_penalty_in_the_loss(make):
    assert_close(trained(make, hooked=True), trained(make, hooked=False))


def test_under_opacus_the_penalty_is_neither_clipped_nor_noised():
    ours, theirs = network(), network()
    private, plain = Private(sgd(ours)), sgd(theirs)
    normloss.NormLoss(ours, lam=LAM).hook(private)
    noise = torch.Generator().manual_seed(2)
    for x, y in batches():
        for model, optimizer in ((ours, private), (theirs, plain)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
        for parameter in theirs.parameters():
            parameter.grad.mul_(0.5).add_(torch.randn(parameter.shape, generator=noise, dtype=torch.float64), alpha=0.1)
        penalty(theirs).backward()
        private.step()
        plain.step()
    assert_close(ours, theirs)


def test_clipping_comes_before_the_penalty():
    """Clipped to nothing, what is left is the penalty's gradient."""
    model, expected = network(), network()
    reg, optimizer = normloss.NormLoss(model, lam=LAM), sgd(model)
    reference = sgd(expected)
    for x, y in batches():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-30)
        reg.before_step()
        optimizer.step()
        reg.after_step()
        reference.zero_grad()
        penalty(expected).backward()
        reference.step()
    for k in (0, 2):
        torch.testing.assert_close(model[k].weight, expected[k].weight, rtol=1e-10, atol=1e-12)


def test_with_gradscaler_unscale_comes_before_the_penalty():
    ours, theirs = network().float(), network().float()
    reg, optimizer, reference = normloss.NormLoss(ours, lam=LAM), sgd(ours), sgd(theirs)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for x, y in batches():
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(ours(x.float()), y)).backward()
        scaler.unscale_(optimizer)
        reg.before_step()
        scaler.step(optimizer)
        reg.after_step()
        scaler.update()
        reference.zero_grad()
        (F.cross_entropy(theirs(x.float()), y) + penalty(theirs)).backward()
        reference.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_an_average_of_the_weights_is_of_the_regularized_ones():
    model = network()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    optimizer = sgd(model)
    reg = normloss.NormLoss(model, lam=LAM)
    reg.hook(optimizer)
    expected = None
    for x, y in batches():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        averaged.update_parameters(model)
        now = model[0].weight.detach().clone()
        expected = now if expected is None else 0.5 * expected + 0.5 * now
    torch.testing.assert_close(averaged.module[0].weight, expected)
    assert list(reg.norms()) == ["0", "2"]  # of the model, not of its average


@pytest.mark.parametrize("decoupled", [False, True])
def test_a_whole_step_can_be_compiled(decoupled):
    def train(compiled: bool) -> nn.Module:
        model = network()
        reg, optimizer = normloss.NormLoss(model, lam=LAM, decoupled=decoupled), sgd(model)

        def step(x, y):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            reg.before_step()
            optimizer.step()
            reg.after_step(optimizer)

        torch._dynamo.reset()
        run = torch.compile(step, backend="eager") if compiled else step
        for x, y in batches():
            run(x, y)
        return model

    assert_close(train(True), train(False))


def test_penalty_in_the_loss_and_layers_that_are_frozen_and_unfrozen():
    model = network()
    reg, optimizer = normloss.NormLoss(model, lam=LAM), sgd(model)
    reg.hook(optimizer)
    model[0].requires_grad_(False)
    kept = copy.deepcopy(model[0])
    for k, (x, y) in enumerate(batches()):
        if k == 2:
            model[0].requires_grad_(True)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        assert torch.equal(model[0].weight, kept.weight) == (k < 2)


# the Jacobian penalty --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda reg, model, x: reg.loss(x, model(x).view(2, 3, 1, 1)), r"logits must be \(B, K\), got \(2, 3, 1, 1\)"),
        (
            lambda reg, model, x: reg.loss(x, network()(torch.zeros(2, 4).double())),
            "cannot be differentiated by the input",
        ),
        (lambda reg, model, x: reg.loss(x.detach(), model(x)), "the input must require a gradient"),
    ],
)
def test_the_jacobian_penalty_refuses_what_it_cannot_differentiate_in_one_line(call, words):
    model = network()
    x = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=words) as caught:
        call(normloss.JacobianPenalty(model, lam=0.1), model, x)
    assert "\n" not in str(caught.value)


def test_the_jacobian_penalty_under_no_grad_is_refused():
    model = network()
    x = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    with torch.no_grad(), pytest.raises(ValueError, match="needs gradients, which torch.no_grad"):
        normloss.JacobianPenalty(model, lam=0.1).loss(x, model(x))


def test_the_jacobian_penalty_says_that_fast_attention_has_no_double_backward_and_what_has():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(2, 3, 8, requires_grad=True)
    with pytest.raises(ValueError, match="fast attention has none: run the model under torch.nn.attention.sdpa_kernel"):
        normloss.JacobianPenalty(layer, lam=0.1).loss(x, layer(x).mean(1))
    with sdpa_kernel(SDPBackend.MATH):
        normloss.JacobianPenalty(layer, lam=0.1).loss(x, layer(x).mean(1)).backward()
    assert layer.linear1.weight.grad.abs().max() > 0
