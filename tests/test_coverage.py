"""The weights that a regularizer covers: with the right rows, listed, and found again when they are replaced."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import normloss
from normloss import models
from normloss.diagnostics import diagnostics
from normloss.regularizers import REGULARIZERS, select_layers, select_weights
from normloss.regularizers.coverage import Coverage
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


def covered(model: nn.Module, layers="conv+linear") -> list[str]:
    return [weight.path for weight in select_weights(model, layers)]


def test_a_spatial_convolution_is_larger_than_1x1_in_some_direction():
    kernels = [(1, 1), (3, 3), (1, 3), (3, 1)]
    model = nn.Sequential(*(nn.Conv2d(2, 2, kernel) for kernel in kernels), nn.Conv1d(2, 2, 1), nn.Linear(2, 2))
    assert covered(model, "spatial") == ["1.weight", "2.weight", "3.weight"]


def test_attention_recurrent_and_bilinear_layers_are_covered():
    assert covered(nn.TransformerEncoderLayer(8, 2, 16)) == [
        "self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"
    ]  # fmt: skip
    assert covered(nn.MultiheadAttention(8, 2, kdim=4, vdim=6)) == [
        "q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"
    ]  # fmt: skip
    assert covered(nn.LSTM(3, 4, num_layers=2, proj_size=2)) == [
        "weight_ih_l0", "weight_hh_l0", "weight_hr_l0", "weight_ih_l1", "weight_hh_l1", "weight_hr_l1"
    ]  # fmt: skip
    assert covered(nn.Sequential(nn.GRUCell(3, 4), nn.Bilinear(2, 3, 4))) == [
        "0.weight_ih", "0.weight_hh", "1.weight"
    ]  # fmt: skip


def blocks() -> nn.Module:
    def block():
        return nn.ModuleDict({"attn": nn.Linear(4, 4), "mlp": nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))})

    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "blocks": nn.ModuleList([block(), block()])})
    model["head"] = nn.Linear(4, 9, bias=False)
    model["norm"] = nn.LayerNorm((2, 4))
    return model


MLPS = ["blocks.0.mlp.0", "blocks.0.mlp.1", "blocks.1.mlp.0", "blocks.1.mlp.1"]


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("blocks.*.mlp.*", MLPS),
        ("blocks.?.mlp", MLPS),
        ("head", ["head"]),
        ("head.weight", ["head"]),
        (["embed", "head"], ["embed", "head"]),
        (["linear", "!blocks.*"], ["head"]),
        (["!*attn", "!head"], MLPS),
        (["blocks.1", "!*.attn"], MLPS[2:]),
        (("blocks.*.mlp.*", re.compile("attn$")), sorted(["blocks.0.attn", "blocks.1.attn", *MLPS])),
        (re.compile(r"blocks\.\d+\.mlp\.1"), ["blocks.0.mlp.1", "blocks.1.mlp.1"]),
        ("all", ["embed", "blocks.0.attn", *MLPS[:2], "blocks.1.attn", *MLPS[2:], "head"]),
        (lambda name, module: isinstance(module, nn.Linear) and module.out_features == 9, ["head"]),
    ],
)
def test_layers_are_named_by_words_patterns_lists_and_functions(layers, names):
    assert list(select_layers(blocks(), layers)) == names


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("haed", "got 'haed': no layer with filters of ModuleDict has such a name"),
        (["head", "mlp"], "got 'mlp': no layer with filters"),
        (["head", "!atn"], "got 'atn': no layer with filters"),
        ("norm", "got 'norm': no layer with filters"),
        (re.compile("mpl"), "got re.compile('mpl'): no layer with filters"),
        (3, "got 3"),
        ([], "got"),
        ("conv", "no layer of ModuleDict matches layers='conv'"),
        (["head", "!head"], "no layer of ModuleDict matches layers=['head', '!head']"),
        (nn.Linear, "got <class 'torch.nn.modules.linear.Linear'>"),
        (lambda name, module: isinstance(module, nn.LayerNorm), "layer 'norm' (LayerNorm) has no weight"),
    ],
)
def test_layers_that_mean_nothing_are_refused_in_one_line(layers, words):
    with pytest.raises(ValueError) as caught:
        normloss.NormLoss(blocks(), lam=0.1, layers=layers)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.table = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5, 2, 2))


def test_a_layer_of_an_unknown_kind_is_named_and_covered_where_it_is_asked_for():
    model = nn.Sequential(nn.Linear(2, 2), Custom())
    assert covered(model) == ["0.weight"]
    assert covered(model, "1") == ["1.weight"]
    assert covered(model, ["1.table"]) == ["1.table"]
    assert covered(model, lambda name, module: name == "1") == ["1.weight"]
    said = repr(normloss.NormLoss(model, lam=0.1))
    assert re.search(r"^1 +\(3, 4\)  a parameter of Custom$", said, flags=re.M)
    assert re.search(r"^1.table +\(5, 2, 2\)  a parameter of Custom$", said, flags=re.M)
    said = repr(normloss.NormLoss(model, lam=0.1, layers=["linear", "1"]))
    assert re.search(r"^1 +3 +4  that axis 0 counts filters is a guess$", said, flags=re.M)
    assert "guess" not in said.splitlines()[2]


class Experts(nn.Module):
    """Fused experts as transformers has them: (experts, outputs, inputs), and (experts, inputs, outputs)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Parameter(torch.randn(3, 8, 5)), nn.Parameter(torch.randn(3, 4, 5))
        self.up = nn.Parameter(torch.randn(6, 4, 3, 3))  # (inputs, outputs, 3, 3)


@pytest.mark.parametrize(
    ("layers", "name", "rows"),
    [
        ({"*.experts.gate_up_proj": 1}, "gate_up_proj", lambda w: w.flatten(0, 1)),
        ({"mlp.experts.gate_up_proj": -2}, "gate_up_proj", lambda w: w.flatten(0, 1)),
        ({"*.down_proj": 2}, "down_proj", lambda w: w.mT.flatten(0, 1)),
        ({"*.down_proj": (0, 2)}, "down_proj", lambda w: w.mT.flatten(0, 1)),
        ({"*.down_proj": 0}, "down_proj", lambda w: w.flatten(1)),
        ({"*.up": (1,)}, "up", lambda w: w.transpose(0, 1).flatten(1)),
        (["linear", {"*.up": (1,)}], "up", lambda w: w.transpose(0, 1).flatten(1)),
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
        ("*.gate_up_proj", r"say which axis of 'experts.gate_up_proj', .*, counts outputs: layers={'\*.gate_up"),
        ({"*.gate_up": 1}, "must name a parameter of two axes or more whose layer is of no known kind"),
        ({"head.weight": 1}, "must name a parameter .* whose layer is of no known kind"),
        ({"*.gate_up_proj": 3}, r"must be the axis that counts outputs, .* of shape \(3, 8, 5\), got 3"),
        ({"*.gate_up_proj": (0, 1, 2)}, "must be the axis that counts outputs"),
        ({}, "layers must be conv"),
    ],
)
def test_an_axis_that_cannot_be_is_refused_in_words_that_say_what_is_possible(layers, words):
    model = nn.ModuleDict({"experts": Experts(), "head": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=words):
        normloss.NormLoss(model, lam=0.1, layers=layers)


class Quantized(torch.Tensor):
    """int8 with a scale, as torchao packs a weight: most operations are not there."""

    @staticmethod
    def __new__(cls, data, scale):
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.float32)

    def __init__(self, data, scale):
        self.data_, self.scale = data, scale

    def __tensor_flatten__(self):
        return ["data_", "scale"], None

    @staticmethod
    def __tensor_unflatten__(parts, context, size, stride):
        return Quantized(parts["data_"], parts["scale"])

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].data_, args[0].scale)
        raise NotImplementedError(f"{function} unimplemented")


def quantize(layer: nn.Linear) -> None:
    packed = Quantized(torch.ones(layer.weight.shape, dtype=torch.int8), torch.tensor(0.1))
    layer.weight = nn.Parameter(packed, requires_grad=False)


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("spoil", [quantize, lambda layer: layer.to(torch.complex64)], ids=["quantized", "complex"])
def test_quantized_and_complex_weights_are_listed_and_left_alone_and_refused_by_name(spoil):
    model = mlp()
    reg = normloss.NormLoss(model, lam=0.5)
    spoil(model[0])
    model[0].weight = model[0].weight if isinstance(model[0].weight, Quantized) else nn.Parameter(model[0].weight)
    others = (method(model, lam=0.1) for method in (normloss.WeightDecay, normloss.SO))
    for each in (reg, *others, normloss.PBWN(model, layers="all")):
        assert list(each.norms()) == ["2"]
        why = r"(quantized \(Quantized\)|torch.complex64 has no filter norms to train)"
        assert re.search(rf"^0 +\(4, 3\)  {why}$", repr(each), flags=re.M)
    assert [layer.name for layer in diagnostics(model)] == ["2"]
    model[2].weight.grad = torch.zeros_like(model[2].weight)
    reg.before_step()
    for method in (normloss.NormLoss, normloss.WeightDecay, normloss.SO):
        with pytest.raises(ValueError, match="the weight of layer '0' cannot be covered: (quantized|torch.complex64)"):
            method(model, lam=0.1, layers=["0", "2"])


@pytest.mark.parametrize("method", [normloss.NormLoss, normloss.WeightDecay])
def test_a_sparse_gradient_is_refused_by_name(method):
    model = nn.ModuleDict({"table": nn.Embedding(5, 3, sparse=True), "head": nn.Linear(3, 2)})
    reg = method(model, lam=0.1, layers="all")
    model["head"](model["table"](torch.tensor([1, 2]))).sum().backward()
    with pytest.raises(ValueError, match=f"{method.__name__}: the gradient of layer 'table' is sparse.*'!table'"):
        reg.before_step()
    method(model, lam=0.1, layers=["all", "!table"]).before_step()
    normloss.NormLoss(model, lam=0.1, layers="all", decoupled=True).before_step()  # moves weights, not gradients


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("made_by", ["torch.jit", "torch.export"])
@pytest.mark.parametrize("inner", [False, True])
def test_scripted_and_exported_modules_are_refused_in_words(made_by, inner):
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 5, 3)), torch.randn(1, 3, 6, 6)
    made = torch.jit.script(model) if made_by == "torch.jit" else torch.export.export(model, (x,)).module()
    for method in (lambda m: normloss.NormLoss(m, lam=0.1), normloss.WeightNorm, diagnostics):
        with pytest.raises(ValueError, match=f"was made by {made_by}, which keeps no layers: build the regularizer on"):
            method(nn.Sequential(nn.Conv2d(3, 3, 1), made) if inner else made)


def test_repr_is_a_table_of_what_is_covered_and_what_is_not_and_why():
    model = blocks()
    model["head"].weight = model["embed"].weight
    model["blocks"][0]["attn"].requires_grad_(False)
    model["parametrized"] = nn.utils.parametrizations.orthogonal(nn.Linear(2, 2))
    model["pruned"] = prune.random_unstructured(nn.Linear(2, 3), "weight", 0.5)
    model["int"] = nn.Linear(2, 2)
    model["int"].weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    reg = normloss.NormLoss(model, lam=0.1, layers=["conv+linear", "!parametrized", "!pruned", "!blocks.1"])
    assert repr(reg).splitlines() == [
        "NormLoss(lam=0.1)",
        f"{'covered':40}  filters   length",
        f"{'blocks.0.attn':40}        4        4  frozen: not changed",
        f"{'blocks.0.mlp.0':40}        8        4",
        f"{'blocks.0.mlp.1':40}        4        8",
        f"{'head':40}        9        4",
        "not covered",
        f"{'embed':40}            (9, 4)  the same as head",
        f"{'blocks.1.attn':40}            (4, 4)  not selected",
        f"{'blocks.1.mlp.0':40}            (8, 4)  not selected",
        f"{'blocks.1.mlp.1':40}            (4, 8)  not selected",
        f"{'norm':40}            (2, 4)  a parameter of LayerNorm",
        f"{'norm.bias':40}            (2, 4)  a parameter of LayerNorm",
        f"{'parametrized':40}    reparametrized  not selected",
        f"{'parametrized.parametrizations.weight.original':40}            (2, 2)  a parameter of ParametrizationList",
        f"{'pruned.weight_orig':40}            (3, 2)  a parameter of Linear",
        f"{'pruned':40}    reparametrized  not selected",
        f"{'int':40}            (2, 2)  torch.int8 has no filter norms to train",
    ]


def test_a_lazy_layer_is_covered_once_it_has_run():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(ValueError, match="layer '0' is lazy and has no weight yet: run the model once first"):
        normloss.NormLoss(model, lam=0.1)
    model(torch.randn(2, 3, 4, 4))
    assert list(normloss.NormLoss(model, lam=0.1).norms()) == ["0", "2"]


@pytest.mark.parametrize("lam", ["1e-2", None, -0.1, float("nan"), float("inf"), True, 1j])
def test_lam_is_a_finite_number_of_at_least_zero_when_built_and_whenever_set(lam):
    with pytest.raises(ValueError, match="^lam must be"):
        normloss.NormLoss(blocks(), lam=lam)
    reg = normloss.NormLoss(blocks(), lam=0.1)
    for target in (reg, normloss.Chain(reg)):
        with pytest.raises(ValueError, match="^lam must be"):
            target.lam = lam
    assert reg.lam == 0.1


def test_norms_are_those_of_each_filter():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.ConvTranspose2d(3, 2, 2))
    norms = normloss.NormLoss(model, lam=0.1).norms()
    torch.testing.assert_close(norms["0"], model[0].weight.detach().flatten(1).norm(dim=1))
    torch.testing.assert_close(norms["2"], model[2].weight.detach().transpose(0, 1).flatten(1).norm(dim=1))
    assert not norms["0"].requires_grad


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


def test_a_copy_is_about_its_own_model():
    model = mlp()
    reg = normloss.NormLoss(model, lam=0.5)
    zero_loss_steps(model, reg, 1)
    twin, theirs = copy.deepcopy((model, reg))
    zero_loss_steps(twin, theirs, 200)
    assert theirs.norms()["0"].tolist() == pytest.approx([1] * 4, abs=1e-4)
    assert torch.equal(reg.norms()["0"], model[0].weight.detach().norm(dim=1))


@pytest.mark.parametrize(
    ("name", "dataset", "count"),
    [("resnet110", "cifar10", 110), ("wrn28_10", "cifar10", 29), ("resnet50", "imagenet", 54)],
)
def test_coverage_of_the_papers_networks_is_every_convolution_and_linear_layer(config, name, dataset, count):
    with torch.device("meta"):
        model = models.build(config(f"dataset={dataset}", f"model={name}").model, 10, 3)
    modules = {key: module for key, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert select_layers(model, "conv+linear") == modules
    assert len(modules) == count
    assert not Coverage(model, "conv+linear").survey()[1]
