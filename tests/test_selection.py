"""Which weights `layers` names, by words, patterns and functions; what is not covered is listed with the reason."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.testing._internal.two_tensor import TwoTensor

import normloss
from normloss import models
from normloss.diagnostics import diagnostics
from normloss.regularizers import select_layers, select_weights
from normloss.regularizers.coverage import Coverage


def blocks() -> nn.Module:
    def block():
        return nn.ModuleDict({"attn": nn.Linear(4, 4), "mlp": nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))})

    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "blocks": nn.ModuleList([block(), block()])})
    model["head"] = nn.Linear(4, 9, bias=False)
    model["norm"] = nn.LayerNorm((2, 4))
    return model


def covered(model: nn.Module, layers="conv+linear") -> list[str]:
    return [weight.path for weight in select_weights(model, layers)]


MLPS = ["blocks.0.mlp.0", "blocks.0.mlp.1", "blocks.1.mlp.0", "blocks.1.mlp.1"]


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("blocks.*.mlp.*", MLPS),
        ("head", ["head"]),
        ("head.weight", ["head"]),
        (["embed", "head"], ["embed", "head"]),
        (["linear", "!blocks.*"], ["head"]),
        (["!*attn", "!head"], MLPS),
        (["blocks.?", "!*.attn"], MLPS),
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
        ("haed", "got 'haed': no layer with filters of ModuleDict fits"),
        (["head", "!atn"], "got 'atn': no layer with filters"),
        ("norm", "got 'norm': no layer with filters"),
        (re.compile("mpl"), "got re.compile('mpl'): no layer with filters"),
        (3, "got 3"),
        ([], "got"),
        ("conv", "no layer of ModuleDict matches layers='conv'"),
        (["head", "!head"], "no layer of ModuleDict matches layers=['head', '!head']"),
        (nn.Linear, "got <class 'torch.nn.modules.linear.Linear'>"),
        (lambda name, module: isinstance(module, nn.LayerNorm), ": no layer with filters of ModuleDict fits"),
    ],
)
def test_layers_that_mean_nothing_are_refused_in_one_line(layers, words):
    with pytest.raises(ValueError) as caught:
        normloss.NormLoss(blocks(), lam=0.1, layers=layers)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


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


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.table = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5, 2, 2))
        self.scale = nn.Parameter(torch.ones(3))


def test_a_layer_of_an_unknown_kind_is_named_and_covered_where_it_is_asked_for():
    model = nn.Sequential(nn.Linear(2, 2), Custom())
    assert covered(model) == ["0.weight"]
    assert covered(model, "1") == ["1.weight"]
    assert covered(model, ["1.table"]) == ["1.table"]
    assert covered(model, lambda name, module: name == "1") == ["1.weight"]
    with pytest.raises(ValueError, match=r"got '1.scale': no layer with filters"):
        covered(model, "1.scale")
    said = repr(normloss.NormLoss(model, lam=0.1))
    assert re.search(r"^1 +\(3, 4\)  a parameter of Custom$", said, flags=re.M)
    assert re.search(r"^1.table +\(5, 2, 2\)  a parameter of Custom$", said, flags=re.M)
    said = repr(normloss.NormLoss(model, lam=0.1, layers=["linear", "1"]))
    assert re.search(r"^1 +3 +4  that axis 0 counts filters is a guess$", said, flags=re.M)
    assert "guess" not in said.splitlines()[2]


@pytest.mark.parametrize(
    "spoil", [lambda W: TwoTensor(W, W), lambda W: W.to(torch.complex64)], ids=["a wrapper, as of torchao", "complex"]
)
def test_quantized_and_complex_weights_are_listed_and_left_alone_and_refused_by_name(spoil):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    reg = normloss.NormLoss(model, lam=0.5)
    model[0].weight = nn.Parameter(spoil(model[0].weight.detach()), requires_grad=False)
    others = (method(model, lam=0.1) for method in (normloss.WeightDecay, normloss.SO))
    for each in (reg, *others, normloss.PBWN(model, layers="all")):
        assert list(each.norms()) == ["2"]
        why = r"(quantized \(TwoTensor\)|torch.complex64 has no filter norms to train)"
        assert re.search(rf"^0 +\(4, 3\)  {why}$", repr(each), flags=re.M)
    assert [layer.name for layer in diagnostics(model)] == ["2"]
    model[2].weight.grad = torch.zeros_like(model[2].weight)
    reg.before_step()
    for method in (normloss.NormLoss, normloss.WeightDecay, normloss.SO):
        with pytest.raises(ValueError, match="the weight of layer '0' cannot be covered: (quantized|torch.complex64)"):
            method(model, lam=0.1, layers=["0", "2"])


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
    model["no inputs"] = nn.Linear(2, 2)
    model["no inputs"].weight = nn.Parameter(torch.ones(2, 0))
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
        f"{'no inputs':40}            (2, 0)  empty",
    ]


def test_a_lazy_layer_is_covered_once_it_has_run():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(ValueError, match="layer '0' is lazy and has no weight yet: run the model once first"):
        normloss.NormLoss(model, lam=0.1)
    model(torch.randn(2, 3, 4, 4))
    assert list(normloss.NormLoss(model, lam=0.1).norms()) == ["0", "2"]


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
