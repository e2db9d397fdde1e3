"""Every method of REGULARIZERS alike: config, steps, hook, state, resume, fold, layouts, precisions, training.

A new entry of REGULARIZERS with its configs/reg/NAME.yaml is under test without a line here.
"""

import copy
import inspect
import io
import warnings
from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import normloss
from normloss import models
from normloss.config import CONFIGS
from normloss.errors import Interrupted
from normloss.regularizers import REGULARIZERS, build
from normloss.regularizers.penalties import Penalty
from normloss.signals import StopRequest
from normloss.training.step import train_step
from tests.closed_form import with_zero_gradients
from tests.conftest import PRESETS

every_method = pytest.mark.parametrize("name", REGULARIZERS)
HOOKABLE = [name for name in REGULARIZERS if name != "jac"]


@pytest.fixture(scope="module")
def composed(config):
    """composed("nl", "model=resnet20") -> the Config of a run of that method; each composed once."""

    @cache
    def make(name: str, *overrides: str):
        return config("dataset=cifar10", "model=resnet8", "recipe=cifar10_resnet110", f"reg={name}", *overrides)

    return make


def grouped() -> nn.Module:
    """Plain, depthwise, grouped and 1x1 convolutions, with and without bias, batch norm, a linear head."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1, groups=4), nn.ReLU(), nn.Conv2d(12, 6, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10),
    )  # fmt: skip


def make(cfg, seed: int = 0, network=grouped, layout=torch.contiguous_format):
    """Model, regularizer and optimizer, in the order of train.py."""
    torch.manual_seed(seed)
    model = network().to(memory_format=layout)
    reg = build(model, cfg.reg)
    return model, reg, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def batches(first: int, last: int):
    """The batches of steps first to last-1, the same whenever they are asked for."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(100 + step)
        yield torch.randn(8, 3, 8, 8, generator=generator), torch.randint(10, (8,), generator=generator)


def train(model, reg, optimizer, cfg, steps: int, first: int = 0) -> None:
    for x, y in batches(first, first + steps):
        train_step(model, reg, optimizer, x, y, cfg.train)


def assert_close(a: nn.Module, b: nn.Module, tolerance: float = 0.0) -> None:
    for key, value in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[key], value, rtol=tolerance, atol=tolerance, msg=key)


def matrices(model: nn.Module) -> list[torch.Tensor]:
    """The filter matrices (n, p) that the convolutions apply."""
    return [module.weight.detach().flatten(1) for module in model.modules() if isinstance(module, nn.Conv2d)]


@every_method
@pytest.mark.parametrize("network", ["model=resnet8", "model=wrn16_4 model.width=1", ""])
def test_three_steps_are_finite_and_change_every_parameter(composed, name, network):
    cfg = composed(name, *network.split())
    model, reg, optimizer = make(cfg, network=(lambda: models.build(cfg.model, 10, 3)) if network else grouped)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    train(model, reg, optimizer, cfg, 3)
    assert reg.lam == cfg.reg.lam
    for key, parameter in model.named_parameters():
        assert parameter.isfinite().all(), key
        assert not torch.equal(parameter, before[key]), key
    penalized = issubclass(REGULARIZERS[name], Penalty | normloss.JacobianPenalty) or cfg.reg.weight_decay > 0
    with torch.no_grad():
        assert (0 < float(reg.value()) < float("inf")) == penalized


@pytest.mark.parametrize("name", ["oni", "olm", "olm_l1"])
def test_orthogonalized_weights_have_singular_values_up_to_their_scale(composed, name):
    cfg = composed(name)
    model, reg, optimizer = make(cfg)
    train(model, reg, optimizer, cfg, 3)
    found = 0
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            scale = module.parametrizations.weight[0].g.abs().max()
            singular = torch.linalg.svdvals(module.weight.detach().flatten(1))
            assert singular.max() <= scale * (1 + 1e-5)
            assert singular.max() > 0.5 * scale
            found += 1
    assert found == {"oni": 4, "olm": 3, "olm_l1": 1}[name]  # convolutions, 3x3 convolutions, the first


PENALTIES = [name for name, method in REGULARIZERS.items() if issubclass(method, Penalty)]
every_penalty = pytest.mark.parametrize("name", PENALTIES)


@pytest.mark.parametrize(
    "words", [*(name for name in PENALTIES if name not in ("srip", "sn")), "srip_converged", "wd reg.half=false"]
)
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_before_step_adds_the_gradient_of_value(composed, words, decay):
    model = grouped().double()
    reg = build(model, composed(*words.split()).reg.model_copy(update={"weight_decay": decay, "lam": 0.05}))
    reg.value().backward()
    expected = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    with_zero_gradients(model)
    reg.before_step()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-11, atol=1e-13)


@every_penalty
def test_steps_without_a_task_lower_the_penalty(composed, name):
    cfg = composed(name)
    torch.manual_seed(0)
    model = grouped()
    reg = build(model, cfg.reg.model_copy(update={"weight_decay": 0.0}))
    reg.lam = 1.0
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    values = []
    for _ in range(30):
        values.append(reg.value().item())
        with_zero_gradients(model)
        reg.before_step()
        optimizer.step()
        reg.after_step()
    assert values[-1] < values[10] < values[0]


@pytest.mark.parametrize("overrides", [*HOOKABLE, "nl reg.decoupled=true"])
@pytest.mark.parametrize("fused", [False, True])
def test_hook_equals_explicit_calls_under_gradscaler_too_and_skips_inf(composed, overrides, fused):
    cfg = composed(*overrides.split())

    def weights_after_each_step(scaler, scales, hook=True) -> list[list[torch.Tensor]]:
        model, reg, _ = make(cfg)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=fused)
        if hook:
            reg.hook(optimizer)
        torch.manual_seed(1)
        weights = []
        for (x, y), scale in zip(batches(0, len(scales)), scales, strict=True):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(x), y) * scale).backward()
            if not hook:
                reg.before_step(optimizer)
            scaler.step(optimizer)
            if not hook:
                reg.after_step(optimizer)
            scaler.update()
            weights.append([parameter.detach().clone() for parameter in model.parameters()])
        return weights

    without, scaler = (torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=enabled) for enabled in (False, True))
    explicit, hooked = (weights_after_each_step(without, [1.0, 1.0], hook) for hook in (False, True))
    torch.testing.assert_close(hooked, explicit, rtol=0, atol=0)
    scaled, skipped = weights_after_each_step(scaler, [1.0, float("inf")])
    torch.testing.assert_close(scaled, explicit[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(skipped, scaled, rtol=0, atol=1e-6 if fused else 0.0)  # a fused step projects once more


@pytest.mark.parametrize("overrides", [*REGULARIZERS, "pbwn reg.every=2"])
def test_three_steps_saved_and_three_more_are_six(composed, overrides):
    cfg = composed(*overrides.split())
    straight, straight_reg, optimizer = make(cfg)
    train(straight, straight_reg, optimizer, cfg, 6)

    model, reg, optimizer = make(cfg)
    train(model, reg, optimizer, cfg, 3)
    state, file = reg.state_dict(), io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), state, torch.get_rng_state()], file)
    train(model, reg, optimizer, cfg, 1, first=3)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    torch.testing.assert_close(state, saved[2], rtol=0, atol=0)  # a snapshot, which the further step left alone
    resumed, reg, optimizer = make(cfg, seed=7)
    for owner, state in zip((resumed, optimizer, reg), saved, strict=False):
        owner.load_state_dict(state)
    torch.set_rng_state(saved[3])
    train(resumed, reg, optimizer, cfg, 3, first=3)
    assert_close(straight, resumed)
    with torch.no_grad():
        assert float(straight_reg.value()) == float(reg.value())


@every_method
@pytest.mark.parametrize("how", ["channels_last", "compiled"])
def test_another_layout_and_a_compiled_model_train_the_same(composed, name, how):
    """Convolutions of another layout sum in another order: 1e-4 after two steps."""
    cfg = composed(name)
    plain, reg, optimizer = make(cfg)
    train(plain, reg, optimizer, cfg, 2)
    model, reg, optimizer = make(cfg, layout=getattr(torch, how, torch.contiguous_format))
    torch._dynamo.reset()
    run = torch.compile(model, backend="eager", fullgraph=True) if how == "compiled" else model
    train(run, reg, optimizer, cfg, 2)
    assert_close(plain, model, 1e-5 if how == "compiled" else 1e-4)


@every_method
def test_bf16_autocast_keeps_weights_and_constraints_in_float32(composed, name):
    cfg = composed(name)
    cfg = cfg.model_copy(update={"train": cfg.train.model_copy(update={"precision": "bf16"})})
    model, reg, optimizer = make(cfg)
    computed = []
    model.register_forward_hook(lambda module, inputs, logits: computed.append(logits.dtype))
    train(model, reg, optimizer, cfg, 2)
    assert set(computed) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
    outside = matrices(model)
    with torch.autocast("cpu", torch.bfloat16):
        inside = matrices(model)
        assert model(next(batches(0, 1))[0]).dtype == torch.bfloat16
    assert all(W.dtype == torch.float32 for W in inside)
    assert all(torch.equal(a, b) for a, b in zip(outside, inside, strict=True))


@every_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def test_models_of_another_precision_train(composed, name, dtype):
    cfg = composed(name)
    model, reg, optimizer = make(cfg, network=lambda: grouped().to(dtype))
    for x, y in batches(0, 2):
        train_step(model, reg, optimizer, x.to(dtype), y, cfg.train)
    assert all(p.dtype == dtype and p.isfinite().all() for p in model.parameters())
    assert all(W.dtype == dtype for W in matrices(model))


class BeforeStep(StopRequest):
    """Asks a run to leave when it asks for the nth time, which it does before each step."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left < 1


SHORT = ("train.epochs=2", "train.batch_size=8", "train.eval_batches=1")


@every_method
def test_every_method_trains_on_digits_and_goes_on_where_it_was_stopped(trained, tmp_path, name):
    words = (*SHORT, f"reg={name}", "train.max_steps=4")
    straight = trained(tmp_path / "straight", *words)
    with pytest.raises(Interrupted):
        trained(tmp_path / "stopped", *words, stop=BeforeStep(3))
    stopped = trained(tmp_path / "stopped", *words)
    assert (straight.state, straight.final["steps"], len(straight.steps()[1])) == ("done", 4, 4)
    assert len(stopped.meta["sessions"]) == 2
    assert stopped.final | {"seconds": 0} == straight.final | {"seconds": 0}


def test_the_trainer_projects_between_epochs_where_pbwn_asks_for_it(trained, tmp_path):
    """The first of two epochs moves the weights away from norm one; the second, of learning rate 1e-10, not again."""
    record = trained(
        tmp_path, *SHORT, "reg=pbwn_epoch", "train.batch_size=1437", "train.max_steps=3", "train.milestones=[1]",
        "train.gamma=1e-9", "train.lr=1", "train.warmup=0",
    )  # fmt: skip
    weights = torch.load(record.path / "last.pt", weights_only=True)["model"]
    norms = torch.cat([W.flatten(1).norm(dim=1) for W in weights.values() if W.ndim == 4])
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-6)
    assert record.epochs[0]["norm_max"] > 1.0001  # as they were trained and tested


OF_THE_SUITE = {"name", "weight_decay", "lam_milestones", "lam_gamma", "lam_values"}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_and_names_each_argument_of_its_class(composed, preset):
    cfg = composed(preset)
    reg = build(grouped(), cfg.reg)
    assert reg.lam == cfg.reg.lam
    arguments = set(inspect.signature(REGULARIZERS[cfg.reg.name]).parameters) - {"model", "seed"}
    keys = set(yaml.safe_load((CONFIGS / "reg" / f"{preset}.yaml").read_text())) - OF_THE_SUITE
    assert keys == (arguments if preset != "none" else set())


@pytest.mark.parametrize(
    ("words", "decay"),
    [("wd reg.lam=1e-4", 1e-4), ("wd reg.lam=1e-4 reg.half=false", 2e-4), ("nl reg.lam=0 reg.weight_decay=1e-4", 1e-4)],
)
def test_weight_decay_is_sgds_by_itself_and_next_to_norm_loss_and_twice_that_without_the_half(composed, words, decay):
    ours, torchs = grouped().double(), grouped().double()
    torchs.load_state_dict(ours.state_dict())
    for model, own in ((ours, 0.0), (torchs, decay)):
        reg = normloss.Regularizer(model) if own else build(model, composed(*words.split()).reg)
        with_zero_gradients(model)
        reg.before_step()
        torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=own).step()
    assert_close(ours, torchs, 1e-14)


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


def reparametrized(by) -> nn.Module:
    """parametrizations.weight_norm, or the older one, where .weight is set before each forward pass."""
    model = grouped()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by(model[8])
    return model


def with_a_zero_filter() -> nn.Module:
    model = grouped()
    nn.init.zeros_(model[3].weight[1])
    return model


new_form, old_form = (partial(reparametrized, by) for by in (parametrizations.weight_norm, nn.utils.weight_norm))
linear, one_input = partial(nn.Sequential, nn.Flatten(), nn.Linear(12, 3)), partial(nn.Sequential, nn.Conv2d(1, 4, 1))
nl = partial(normloss.NormLoss, lam=0.1)
EVERY = 'every must be a number of steps or "epoch", got '
PLAIN = (
    "the weight of layer '8' is reparametrized: penalties and projections need a plain one; leave it out with layers"
)
REFUSED = [
    (grouped, lambda m: normloss.Chain(), "Chain needs one regularizer or more"),
    (grouped, lambda m: normloss.Chain([nl(m)]), "as its arguments, each once"),
    (grouped, lambda m: nl(m.parameters()), "model must be a torch.nn.Module, got generator"),
    (grouped, lambda m: normloss.Chain(reg := nl(m), normloss.Chain(reg)), "as its arguments, each once"),
    (grouped, lambda m: normloss.ONI(m, T=0), "T must be at least 1, got 0"),
    (grouped, lambda m: normloss.OLM(m, group_size=0), "group_size must be at least 1, got 0"),
    *((grouped, partial(normloss.PBWN, every=wrong), f"{EVERY}{wrong!r}") for wrong in (0, "day", 0.5)),
    (grouped, lambda m: normloss.SRIP(m, lam=0.1, steps=0), "steps must be at least 1, or None"),
    (grouped, lambda m: normloss.JacobianPenalty(m, lam=0.1, n_proj=-2), "n_proj must be at least 1, or -1"),
    (linear, normloss.PBWN, "no layer of Sequential matches layers='conv'"),
    (linear, normloss.OLM, "no layer of Sequential matches layers='spatial'"),
    (partial(nn.Sequential, nn.ReLU()), nl, "no layer of Sequential matches"),
    *((form, method, PLAIN) for form in (new_form, old_form) for method in (nl, normloss.PBWN)),
    (new_form, normloss.ONI, "ONI: the weight of layer '8' is reparametrized already"),
    (with_a_zero_filter, normloss.WeightNorm, "WeightNorm: filter 1 of layer '3' is zero and has no direction"),
    (one_input, normloss.ONI, "a filter of one input cannot be orthogonalized"),
    (one_input, partial(normloss.OLM, layers="conv"), "a filter of one input cannot be orthogonalized"),
    (tied, partial(normloss.WeightNorm, layers="linear"), "WeightNorm: the weight of layer '0' is tied to another's"),
]


@pytest.mark.parametrize(("make_model", "method", "words"), REFUSED)
def test_wrong_use_is_refused_in_one_line_and_leaves_the_model_as_it_was(make_model, method, words):
    model = make_model()
    before, kinds = copy.deepcopy(model.state_dict()), [type(module) for module in model]
    with pytest.raises(ValueError) as caught:
        method(model)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [type(module) for module in model] == kinds
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_reparametrization_behind_a_penalty_or_projection_is_noticed_at_the_step():
    for method in (lambda model: normloss.NormLoss(model, lam=0.1), normloss.PBWN):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
        reg = method(model)
        normloss.WeightNorm(model)
        with pytest.raises(ValueError, match="the weight of layer '0' is reparametrized"):
            reg.before_step(), reg.after_step()
