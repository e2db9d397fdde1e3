"""What a regularizer cannot serve, or should not: an optimizer, a hook or a batch, refused or warned of in one line."""

import gc
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import normloss
from tests.closed_form import assert_close, backward, batches, network, norm_loss, sgd, updated, with_zero_gradients


def test_a_second_hook_is_refused():
    model = network()
    reg, optimizer = norm_loss(model), sgd(model.parameters())
    handle = reg.hook(optimizer)
    with pytest.raises(ValueError, match="NormLoss is hooked to this SGD already.*: once is enough"):
        reg.hook(optimizer)
    with pytest.raises(ValueError, match="NormLoss is hooked to this SGD already for 0"):
        norm_loss(model, lam=0.1).hook(optimizer)
    with pytest.raises(ValueError, match="already for 2"):
        normloss.Chain(normloss.WeightDecay(model, lam=0.1), norm_loss(model, layers="2")).hook(optimizer)
    normloss.WeightDecay(model, lam=0.1, layers="linear").hook(optimizer).remove()  # another method may be there too
    handle.remove()
    reg.hook(optimizer)
    expected = updated(model, batches(1))
    backward(model, batches(1))
    optimizer.step()
    assert_close(model, expected)


@pytest.mark.parametrize("decoupled", [False, True])
def test_a_hooked_step_that_is_called_too_raises_and_changes_nothing(decoupled):
    trained = []
    for called in (True, False):
        model = network()
        reg, optimizer = norm_loss(model, decoupled=decoupled), sgd(model.parameters())
        handle = reg.hook(optimizer)
        backward(model, batches(1))
        for call in (reg.before_step, normloss.Chain(reg).before_step, *[reg.after_step] * decoupled) if called else ():
            for given in (optimizer, *[None] * (call != reg.after_step)):
                with pytest.raises(ValueError, match=r"NormLoss is hooked: optimizer.step\(\) calls before_step\(\)"):
                    call(given)
        optimizer.step()
        trained.append(model)
    assert_close(*trained)
    reg.before_step(sgd(network().parameters()))  # another optimizer's weights
    handle.remove()
    reg.before_step()


def test_a_hook_is_found_behind_a_wrapper_and_ends_with_its_optimizer():
    model = network()
    reg, optimizer = norm_loss(model), sgd(model.parameters())
    wrapper = SimpleNamespace(optimizer=SimpleNamespace(optimizer=optimizer, step=optimizer.step), step=optimizer.step)
    reg.hook(wrapper)
    expected = updated(model, batches(1))
    backward(model, batches(1))
    with pytest.raises(ValueError, match="NormLoss is hooked"):
        reg.before_step(wrapper)
    wrapper.step()
    assert_close(model, expected)
    del optimizer, wrapper
    gc.collect()
    assert not reg.hooks
    reg.before_step()  # for the optimizer that comes next


def test_projections_between_epochs_are_called_of_a_hooked_method_too():
    model = network()
    reg = normloss.PBWN(model, layers="linear", every="epoch")
    reg.hook(sgd(model.parameters()))
    with torch.no_grad():
        model[0].weight.mul_(2)
    reg.after_epoch()
    torch.testing.assert_close(reg.norms()["0"], torch.ones_like(reg.norms()["0"]))


def test_covered_weights_that_no_hooked_optimizer_holds_are_named_once():
    model = network()
    optimizer = sgd(model[0].parameters())
    norm_loss(model).hook(optimizer)
    backward(model, batches(1))
    with pytest.warns(UserWarning, match="NormLoss covers weights that no hooked optimizer holds.*: 2$"):
        optimizer.step()
    optimizer.step()  # a second warning would be an error here


def test_what_cannot_be_hooked_is_refused_in_one_line():
    model = network()
    reg = norm_loss(model)
    two_calls = type("TwoCalls", (torch.optim.SGD,), {"second_step": lambda self: None})
    for thing, words in [
        (sgd(network().parameters()), r"this SGD holds none of the weights that NormLoss covers \(0, 2\)"),
        (None, "hook needs a torch.optim.Optimizer, got NoneType"),
        (two_calls(model.parameters(), lr=0.1), "TwoCalls steps in two calls"),
    ]:
        with pytest.raises(ValueError, match=words):
            reg.hook(thing)


def test_where_no_covered_weight_has_a_gradient_one_warning_says_so():
    """As under DeepSpeed, Megatron's main_grad, an optimizer that stepped within backward, a clone of the module."""
    model = network()
    for reg in (norm_loss(model), norm_loss(model, decoupled=True), normloss.RiemannianOblique(model, layers="linear")):
        with pytest.warns(UserWarning, match="no covered weight has a gradient here.* hook the optimizer") as caught:
            for _ in range(3):
                reg.before_step()
        assert len(caught) == 1
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    norm_loss(model).before_step()  # only some have none: nothing is said
    model.requires_grad_(False).zero_grad()
    norm_loss(model).before_step()


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("how", ["hook", "explicit", "given"])
def test_weight_decay_in_addition_to_norm_loss_is_named_once(how, decoupled):
    model = with_zero_gradients(network())
    reg = norm_loss(model, decoupled=decoupled)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning) as caught:
        if how == "hook":
            reg.hook(optimizer)
        for _ in range(3):
            if how != "hook":
                reg.before_step(optimizer if how == "given" else None)
            optimizer.step()
            if how != "hook":
                reg.after_step(optimizer)
    (said,) = [str(warning.message) for warning in caught]
    assert said.startswith("NormLoss and AdamW(weight_decay=0.01) both act on 0, 2: norm loss replaces weight decay")


def test_weight_decay_of_other_weights_is_fine_and_of_a_group_that_comes_later_is_not():
    model = network()
    groups = [{"params": [model[0].bias], "weight_decay": 0.1}, {"params": [model[0].weight], "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    norm_loss(model, layers="0").hook(optimizer)
    backward(model, batches(1))
    optimizer.step()
    extended = torch.optim.AdamW([model[0].weight], lr=0.1, weight_decay=0.0)
    norm_loss(model).hook(extended)
    extended.add_param_group({"params": [model[2].weight], "weight_decay": 0.3})
    with pytest.warns(UserWarning, match=r"AdamW\(weight_decay=0.3\) both act on 2"):
        extended.step()


def test_decoupled_without_a_learning_rate_is_refused():
    model = network()
    reg = norm_loss(model, decoupled=True)
    for each in (reg, normloss.Chain(normloss.WeightDecay(model, lam=0.1), reg)):
        with pytest.raises(ValueError, match=r"decoupled NormLoss needs the lr: call after_step\(optimizer\)"):
            each.after_step()
    with pytest.raises(ValueError, match="decoupled NormLoss does not go with LBFGS"):
        reg.hook(torch.optim.LBFGS(model.parameters()))


@pytest.mark.parametrize("name", ["WeightNorm", "ONI"])
def test_an_optimizer_made_before_a_reparametrization_is_refused_where_it_is_hooked_or_given(name):
    model = network()
    early = sgd(model.parameters())
    reg = getattr(normloss, name)(model, layers="linear")
    for use in (reg.hook, reg.before_step, reg.after_step, normloss.Chain(reg).hook):
        with pytest.raises(ValueError, match=f"{name}: build it before the optimizer; this SGD holds .* layer '0'"):
            use(early)
    head = sgd([model[0].bias])  # holds nothing that was replaced
    reg.before_step(head)
    late = sgd(model.parameters())
    reg.hook(late)
    backward(model, batches(1))
    late.step()
    reg.fold()
    reg.before_step(late)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda reg, model, x: reg.loss(x, model(x).view(2, 3, 1, 1)), r"logits must be \(B, K\), got \(2, 3, 1, 1\)"),
        (lambda reg, model, x: reg.loss(x.detach(), model(x)), "the input must require a gradient"),
        (lambda reg, model, x: torch.no_grad()(reg.loss)(x, model(x)), "needs gradients, which torch.no_grad"),
        (lambda reg, model, x: reg.hook(sgd(model.parameters())), "has no hook: it needs the batch"),
    ],
)
def test_the_jacobian_penalty_refuses_what_it_cannot_differentiate_in_one_line(call, words):
    model = network()
    x = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=words) as caught:
        call(normloss.JacobianPenalty(model, lam=0.1), model, x)
    assert "\n" not in str(caught.value)


def test_the_jacobian_penalty_says_that_fast_attention_has_no_double_backward_and_what_has():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(2, 3, 8, requires_grad=True)
    with pytest.raises(ValueError, match="fast attention has none: run the model under torch.nn.attention.sdpa_kernel"):
        normloss.JacobianPenalty(layer, lam=0.1).loss(x, layer(x).mean(1))
    with sdpa_kernel(SDPBackend.MATH):
        normloss.JacobianPenalty(layer, lam=0.1).loss(x, layer(x).mean(1)).backward()
    assert layer.linear1.weight.grad.abs().max() > 0


@pytest.mark.parametrize("method", [normloss.NormLoss, normloss.WeightDecay])
def test_a_sparse_gradient_is_refused_by_name(method):
    model = nn.ModuleDict({"table": nn.Embedding(5, 3, sparse=True), "head": nn.Linear(3, 2)})
    reg = method(model, lam=0.1, layers="all")
    model["head"](model["table"](torch.tensor([1, 2]))).sum().backward()
    with pytest.raises(ValueError, match=f"{method.__name__}: the gradient of layer 'table' is sparse.*'!table'"):
        reg.before_step()
    method(model, lam=0.1, layers=["all", "!table"]).before_step()
    normloss.NormLoss(model, lam=0.1, layers="all", decoupled=True).before_step()  # moves weights, not gradients


@pytest.mark.parametrize("lam", ["1e-2", None, -0.1, float("nan"), float("inf"), True, 1j])
def test_lam_is_a_finite_number_of_at_least_zero_when_built_and_whenever_set(lam):
    with pytest.raises(ValueError, match="^lam must be"):
        normloss.NormLoss(network(), lam=lam)
    reg = normloss.NormLoss(network(), lam=0.1)
    for target in (reg, normloss.Chain(reg)):
        with pytest.raises(ValueError, match="^lam must be"):
            target.lam = lam
    assert reg.lam == 0.1
