"""Folding, copies made before it, state dicts of others and of older versions, pickling, and what a method draws."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

import normloss
from tests.closed_form import with_zero_gradients

METHODS = {"WeightNorm": normloss.WeightNorm, "ONI": normloss.ONI, "OLM": normloss.OLM}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(20, 3))


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def plain(model: nn.Module) -> bool:
    return not any(parametrize.is_parametrized(module) for module in model.modules())


@every_method
def test_copies_made_before_a_fold_live_and_fold_themselves(method):
    model = network()
    reg = method(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model(X).detach()
    twin, theirs = copy.deepcopy((model, reg))
    average = AveragedModel(model)
    copy.deepcopy((model, reg))[1].fold()
    assert not plain(model)
    reg.before_step()
    reg.fold()
    assert plain(model)
    assert type(model[0]) is nn.Conv2d
    for each, fold in ((twin, theirs.fold), (average, lambda: reg.fold(average))):
        assert not plain(each)
        torch.testing.assert_close(each(X), before, rtol=0, atol=1e-6)
        each(X).sum().backward()
        each.load_state_dict(each.state_dict())
        fold()
        assert plain(each)
        torch.testing.assert_close(each(X), before, rtol=0, atol=1e-6)
        pickle.dumps(each)
    torch.testing.assert_close(model(X), before, rtol=0, atol=1e-6)
    folded = model[0].weight.detach().clone()
    F.cross_entropy(model(X), torch.tensor([0, 1])).backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, folded)  # the optimizer goes on with the folded layer
    reg.before_step(), reg.after_step()  # nothing is left to check


@pytest.mark.parametrize("folded", [False, True])
def test_the_older_weight_norm_loads_as_torchs_own_parametrization_loads_it(folded):
    older, torchs, ours = network(), network(), network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for k in (0, 2):
            nn.utils.weight_norm(older[k])
            with torch.no_grad():
                older[k].weight_g.mul_(2)
            nn.utils.parametrizations.weight_norm(torchs[k])
    assert "0.weight_g" in older.state_dict()
    torchs.load_state_dict(older.state_dict())
    reg = normloss.WeightNorm(ours)
    twin = copy.deepcopy(ours)
    for model in (ours, twin):
        model.load_state_dict(older.state_dict())
        assert torch.equal(model(X), torchs(X))
    if folded:
        reg.fold()
        torch.testing.assert_close(pickle.loads(pickle.dumps(ours))(X), torchs(X))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@every_method
def test_a_folded_model_can_be_scripted_and_exported(method):
    model = network().eval()
    reg = method(model)
    before = model(X).detach()
    reg.fold()
    for other in (torch.jit.script(model), torch.export.export(model, (X,)).module()):
        torch.testing.assert_close(other(X), before, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [("PBWN", {}, "steps"), ("SpectralNormPenalty", {"lam": 0.1}, "u"), ("JacobianPenalty", {"lam": 0.1}, "last")],
)
def test_an_empty_state_is_refused_in_one_line(name, options, key):
    reg = getattr(normloss, name)(network(), **options)
    for each, words in ((reg, f"{name}: its state must hold '{key}'"), (normloss.Chain(reg), "Chain: .* hold '0'")):
        with pytest.raises(ValueError, match=f"{words}, got nothing"):
            each.load_state_dict({})


def test_vectors_of_a_spectral_norm_are_restored_by_name_and_of_versions_0_1_and_0_2_by_position():
    layers = {"a": nn.Linear(3, 4), "b": nn.Linear(2, 4)}
    state = normloss.SpectralNormPenalty(nn.ModuleDict(layers), lam=0.1).state_dict()
    reg = normloss.SpectralNormPenalty(nn.ModuleDict({name: layers[name] for name in "ba"}), lam=0.1)
    reg.load_state_dict(state)
    assert list(reg.state_dict()["u"]) == ["b.weight", "a.weight"]
    assert torch.equal(reg.state_dict()["u"]["b.weight"], state["u"]["b.weight"])
    older = {"u": [torch.full((4,), 0.5), torch.full((4,), -0.5)]}
    reg.load_state_dict(older)
    assert torch.equal(reg.state_dict()["u"]["a.weight"], older["u"][1])
    for wrong in ({"u": older["u"][:1]}, {"u": {"b.weight": older["u"][0]}}):
        with pytest.raises(ValueError, match="its state holds no vector of 4 for 'a.weight'"):
            reg.load_state_dict(wrong)


def test_the_count_of_version_0_1_is_read():
    model = network()
    reg = normloss.PBWN(model, every=3)
    reg.load_state_dict({"steps": 2})
    with torch.no_grad():
        model[0].weight.mul_(2)
    reg.after_step()
    assert reg.norms()["0"].tolist() == pytest.approx([1] * 4)


@pytest.mark.parametrize("name", ["NormLoss", "SRIP", "SpectralNormPenalty", "PBWN", "WeightDecay"])
def test_a_regularizer_pickles_with_its_model_while_it_is_hooked(name):
    model = network()
    reg = getattr(normloss, name)(model, **({} if name == "PBWN" else {"lam": 0.1}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reg.hook(optimizer)
    F.cross_entropy(model(X), torch.tensor([0, 1])).backward()
    optimizer.step()
    twin, theirs = pickle.loads(pickle.dumps((model, reg)))
    assert theirs.lam == reg.lam
    theirs.hook(torch.optim.SGD(twin.parameters(), lr=0.1))


@pytest.mark.parametrize("name", ["SRIP", "SpectralNormPenalty"])
def test_what_a_method_draws_is_apart_from_the_callers_generators(name):
    gradients = []
    for seed in (1, 2):
        model = with_zero_gradients(network())
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        reg = getattr(normloss, name)(model, lam=0.1)
        for _ in range(3):
            reg.before_step()
        assert torch.equal(before, torch.get_rng_state())
        gradients.append(model[0].weight.grad)
    assert torch.equal(*gradients)
    twin = copy.deepcopy(reg)  # draws what the original would
    assert twin.state_dict().keys() == reg.state_dict().keys()


@pytest.mark.parametrize("method", [normloss.SRIP, normloss.JacobianPenalty])
def test_what_is_drawn_goes_on_from_a_state_where_it_was(method):
    model = network()
    reg, resumed = method(model, lam=0.1), method(model, lam=0.1)

    def draw(reg) -> Tensor:
        with_zero_gradients(model)
        x = X.clone().requires_grad_()
        reg.loss(x, model(x)).backward() if reg.needs_input_grad else reg.before_step()
        return model[0].weight.grad

    first = draw(reg)
    state = copy.deepcopy(reg.state_dict())
    second = draw(reg)
    resumed.load_state_dict(state)
    assert torch.equal(draw(resumed), second)
    assert not torch.equal(first, second)
