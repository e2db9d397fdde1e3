"""The weights that a regularizer covers: with the right rows, listed, and found again when they are replaced."""

import copy

import pytest
import torch
from torch import nn

import normloss
from normloss.diagnostics import diagnostics
from normloss.regularizers import REGULARIZERS, select_weights
from tests.closed_form import with_zero_gradients


class Conv1D(nn.Module):
    """As transformers has it: y = x W + b, W (inputs, outputs)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return x @ self.weight + self.bias


def one_step(model: nn.Module, reg) -> None:
    reg.before_step()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    reg.after_step()


def zero_loss_steps(model: nn.Module, reg, steps: int) -> None:
    for _ in range(steps):
        with_zero_gradients(model)
        one_step(model, reg)


def fill(model: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


# rows: what makes one output is one filter ---------------------------------------------------------------

INPUTS = {
    "Linear": (nn.Linear(6, 4), torch.randn(2, 6)),
    "Conv2d, groups": (nn.Conv2d(4, 6, 3, groups=2), torch.randn(2, 4, 5, 5)),
    "ConvTranspose1d": (nn.ConvTranspose1d(4, 6, 3), torch.randn(2, 4, 5)),
    "ConvTranspose2d, groups": (nn.ConvTranspose2d(4, 6, 3, groups=2), torch.randn(2, 4, 5, 5)),
    "ConvTranspose2d, depthwise": (nn.ConvTranspose2d(4, 4, 3, groups=4), torch.randn(2, 4, 5, 5)),
    "ConvTranspose2d, channels_last": (
        nn.ConvTranspose2d(4, 6, 3, groups=2).to(memory_format=torch.channels_last), torch.randn(2, 4, 5, 5)
    ),
    "ConvTranspose3d": (nn.ConvTranspose3d(2, 3, 2), torch.randn(2, 2, 3, 3, 3)),
    "Conv1D of transformers": (Conv1D(6, 4), torch.randn(2, 4)),
}  # fmt: skip


def output_channels(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = layer(x)
    return y.movedim(1 if y.ndim > 2 else -1, 0)


@pytest.mark.parametrize("name", INPUTS)
def test_a_row_is_what_makes_one_output(name):
    """The weights that output k depends on, found by autograd, are row k of W."""
    layer, x = INPUTS[name]
    model = nn.Sequential(copy.deepcopy(layer))
    (weight,) = select_weights(model, "conv+linear")
    W = weight.matrix(weight.tensor)
    outputs = output_channels(model, x)
    assert len(W) == len(outputs)
    for k, output in enumerate(outputs):
        (used,) = torch.autograd.grad(output.square().sum(), weight.tensor, retain_graph=True)
        mask = weight.matrix((used != 0).float())
        assert mask[k].all()
        assert mask.sum() == mask[k].sum()


def assert_served_as_linear(model: nn.Module, layers, weight: nn.Parameter, rows, method: str) -> None:
    """One step on a weight is one on a linear layer with the weight's rows(weight)."""
    W = rows(weight).detach().clone()
    plain = nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=W.dtype)
    with torch.no_grad():
        plain.weight.copy_(W)
    weight.grad = torch.randn_like(weight)
    plain.weight.grad = rows(weight.grad).clone()
    options = {} if method in ("pbwn", "oblique", "stiefel") else {"lam": 0.3}
    for network, chosen in ((model, layers), (plain, "linear")):
        one_step(network, REGULARIZERS[method](network, layers=chosen, **options))
    torch.testing.assert_close(rows(weight), plain.weight, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("method", ["nl", "so", "mc", "sn", "pbwn", "oblique", "stiefel"])
def test_every_kind_is_served_as_a_linear_layer_with_the_same_rows(name, method):
    model = nn.Sequential(copy.deepcopy(INPUTS[name][0])).double()
    (weight,) = select_weights(model, "conv+linear")
    assert_served_as_linear(model, "conv+linear", weight.tensor, weight.matrix, method)


class Experts(nn.Module):
    """Fused experts as transformers has them: (experts, outputs, inputs), and (experts, inputs, outputs)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Parameter(torch.randn(3, 8, 5)), nn.Parameter(torch.randn(3, 4, 5))
        self.up = nn.Parameter(torch.randn(6, 4, 3, 3))


@pytest.mark.parametrize(
    ("layers", "name", "rows"),
    [
        ({"*.experts.gate_up_proj": 1}, "gate_up_proj", lambda w: w.flatten(0, 1)),
        ({"mlp.experts.gate_up_proj": -2}, "gate_up_proj", lambda w: w.flatten(0, 1)),
        ({"*.down_proj": 2}, "down_proj", lambda w: w.mT.flatten(0, 1)),
        ({"*.down_proj": 0}, "down_proj", lambda w: w.flatten(1)),
        (["linear", {"*.up": 1}], "up", lambda w: w.flatten(0, 1).flatten(1)),
    ],
)
@pytest.mark.parametrize("method", ["nl", "so", "sn", "pbwn"])
def test_a_dict_names_the_axis_that_counts_the_outputs_of_fused_experts(layers, name, rows, method):
    model = nn.ModuleDict({"mlp": nn.ModuleDict({"experts": Experts()}), "head": nn.Linear(2, 2)}).double()
    assert_served_as_linear(model, layers, model["mlp"]["experts"].get_parameter(name), rows, method)
    assert "guess" not in repr(normloss.NormLoss(model, lam=0.1, layers=layers))


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("*.gate_up_proj", r"say which axis of 'experts.gate_up_proj', .*, counts outputs: layers={'experts.gate_up"),
        ({"head.weight": 1}, "must name a parameter of two axes or more whose layer is of no known kind"),
        ({"*.gate_up_proj": 3}, r"must be the axis that counts outputs, of shape \(3, 8, 5\), got 3"),
        ({}, "layers must be conv"),
    ],
)
def test_an_axis_that_cannot_be_is_refused_in_words_that_say_what_is_possible(layers, words):
    model = nn.ModuleDict({"experts": Experts(), "head": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=words):
        normloss.NormLoss(model, lam=0.1, layers=layers)


# the weights held are the model's ---------------------------------------------------------------------------


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def head_of_norm_four(model: nn.Sequential) -> None:
    model[2] = fill(nn.Linear(4, 2), 2.0)


def assigned(model: nn.Sequential) -> None:
    model.load_state_dict({name: 3 * value for name, value in model.state_dict().items()}, assign=True)


def pruned_for_good(model: nn.Sequential) -> None:
    model[0].weight = nn.Parameter(3 * model[0].weight.detach()[:2].clone())
    model[0].bias = nn.Parameter(torch.zeros(2))
    model[2].weight = nn.Parameter(3 * model[2].weight.detach()[:, :2].clone())


def thawed(model: nn.Sequential) -> None:
    model[0].requires_grad_(True)


@pytest.mark.parametrize("change", [head_of_norm_four, assigned, pruned_for_good, thawed])
@pytest.mark.parametrize(
    "method",
    [
        lambda model: normloss.NormLoss(model, lam=0.5),
        lambda model: normloss.PBWN(model, layers="conv+linear"),
        lambda model: normloss.RiemannianOblique(model, layers="conv+linear"),
    ],
    ids=["nl", "pbwn", "oblique"],
)
def test_what_replaces_a_layer_or_a_parameter_or_is_frozen_no_more_is_followed(change, method):
    model = mlp()
    model[0].requires_grad_(change is not thawed)
    reg = method(model)
    zero_loss_steps(model, reg, 1)
    change(model)
    zero_loss_steps(model, reg, 100)
    for layer in model:
        if isinstance(layer, nn.Linear):
            norms = layer.weight.detach().norm(dim=1)
            torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=2e-4)


def test_layers_that_are_added_later_are_followed():
    model = nn.ModuleDict({"head": nn.Linear(3, 2), "blocks": nn.ModuleList()})
    reg = normloss.NormLoss(model, lam=0.5)
    model["blocks"].append(nn.Linear(3, 3))
    assert list(reg.norms()) == ["head", "blocks.0"]
    model["blocks"][0] = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    assert list(reg.norms()) == ["head", "blocks.0.0", "blocks.0.1"]
    del model["head"]
    assert list(reg.norms()) == ["blocks.0.0", "blocks.0.1"]


def test_a_model_built_on_the_meta_device_is_followed_to_its_weights():
    with torch.device("meta"):
        model = mlp()
    penalty, projection = normloss.NormLoss(model, lam=0.5), normloss.PBWN(model, layers="linear")
    for look in (penalty.value, penalty.norms, lambda: diagnostics(model)):
        with pytest.raises(ValueError, match="the weight of layer '0' is on the meta device: give it values first"):
            look()
    fill(model.to_empty(device="cpu"), 2.0)
    zero_loss_steps(model, penalty, 100)
    assert penalty.norms()["2"].tolist() == pytest.approx([1, 1], abs=1e-3)
    zero_loss_steps(model, projection, 1)
    assert projection.norms()["2"].tolist() == pytest.approx([1, 1])
    with pytest.raises(ValueError, match="the weight of layer '0' is on the meta device"), torch.device("meta"):
        normloss.ONI(mlp(), layers="linear")


def test_weights_tied_afterwards_count_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    reg = normloss.NormLoss(model, lam=0.5)
    model[1].weight = model[0].weight
    assert list(reg.norms()) == ["0"]
    value = (0.5 * (1 - model[0].weight.norm(dim=1)).square()).sum()
    torch.testing.assert_close(reg.value(), value)


@pytest.mark.parametrize(
    "name", ["PBWN", "RiemannianOblique", "Stiefel", "NormLoss", "WeightDecay", "ONI", "WeightNorm"]
)
def test_a_frozen_weight_is_left_alone_and_named(name):
    model = mlp()
    model[0].requires_grad_(False)
    kept = copy.deepcopy(model[0])
    options = {"lam": 0.5} if hasattr(getattr(normloss, name), "penalty") else {}
    reg = getattr(normloss, name)(model, layers="linear", **options)
    assert "frozen" in repr(reg)
    x = torch.randn(5, 3)
    assert torch.equal(model[0](x), kept(x))
    model[0].weight.grad = torch.ones_like(model[0].weight)  # of before it was frozen
    reg.before_step()
    assert model[0].weight.grad.eq(1).all()
    reg.after_step()
    assert torch.equal(model[0](x), kept(x))


@pytest.mark.parametrize("name", ["ONI", "WeightNorm"])
def test_a_reparametrization_says_that_it_cannot_follow(name):
    for change, words in [
        (head_of_norm_four, "the weight of layer '2' is not the one that was reparametrized"),
        (thawed, "layer '0' was frozen when this was built"),
    ]:
        model = mlp()
        model[0].requires_grad_(False)
        reg = getattr(normloss, name)(model, layers="linear")
        assert f"{'2':40} reparametrized" in repr(reg)
        reg.before_step()
        change(model)
        with pytest.raises(ValueError, match=words):
            reg.before_step()


def test_the_spectral_penalty_becomes_its_gradient_of_a_weight_of_another_shape_and_precision():
    model = mlp()
    reg = normloss.SpectralNormPenalty(model, lam=0.5)
    model[2] = nn.Linear(4, 7).double()
    for _ in range(200):
        with_zero_gradients(model)
        reg.before_step()
    U, S, Vh = torch.linalg.svd(model[2].weight.detach())
    torch.testing.assert_close(model[2].weight.grad, 0.5 * S[0] * torch.outer(U[:, 0], Vh[0]), rtol=1e-6, atol=1e-6)
