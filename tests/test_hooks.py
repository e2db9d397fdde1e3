"""Once for each update of each weight, whoever calls: hooks, several optimizers, accumulation, closures, wrappers."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normloss


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def batches(n: int):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator)) for _ in range(n)]


def sgd(parameters, lr: float = 0.1, **options):
    return torch.optim.SGD(parameters, lr=lr, **options)


def loss_of(model, x, y):
    return F.cross_entropy(model(x), y)


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def pulled_once(lam: float = 0.5, lr: float = 0.1, steps: int = 1) -> nn.Module:
    """The network after steps on no loss but the norm loss, by equation 12: w - lr 2 lam (1 - 1/|w|) w."""
    model = network()
    with torch.no_grad():
        for _ in range(steps):
            for layer in (model[0], model[2]):
                r = layer.weight.norm(dim=1, keepdim=True)
                layer.weight -= lr * 2 * lam * (1 - 1 / r) * layer.weight
    return model


def assert_pulled(model: nn.Module, expected: nn.Module) -> None:
    for k in (0, 2):
        torch.testing.assert_close(model[k].weight, expected[k].weight)


def clear(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


# hooks -----------------------------------------------------------------------------------------------------


def test_a_second_hook_is_refused():
    model = network()
    reg = normloss.NormLoss(model, lam=0.5)
    optimizer = sgd(model.parameters())
    handle = reg.hook(optimizer)
    with pytest.raises(ValueError, match="NormLoss is hooked to this SGD already.*: once is enough"):
        reg.hook(optimizer)
    with pytest.raises(ValueError, match="NormLoss is hooked to this SGD already for 0"):
        normloss.NormLoss(model, lam=0.1).hook(optimizer)
    with pytest.raises(ValueError, match="already for 2"):
        normloss.Chain(normloss.WeightDecay(model, lam=0.1), normloss.NormLoss(model, lam=0.1, layers="2")).hook(
            optimizer
        )
    normloss.WeightDecay(model, lam=0.1, layers="linear").hook(optimizer).remove()  # another method may be there too
    handle.remove()
    reg.hook(optimizer)
    clear(model)
    optimizer.step()
    assert_pulled(model, pulled_once())


def test_each_hook_serves_the_weights_of_its_optimizer():
    model = network()
    reg = normloss.NormLoss(model, lam=0.5)
    first, second = sgd(model[0].parameters()), sgd(model[2].parameters(), lr=0.05)
    reg.hook(first), reg.hook(second)
    for _ in range(3):
        clear(model)
        first.step()
        second.step()
    torch.testing.assert_close(model[0].weight, pulled_once(steps=3)[0].weight)
    torch.testing.assert_close(model[2].weight, pulled_once(lr=0.05, steps=3)[2].weight)


def test_muon_for_one_layer_and_adamw_for_the_other_get_the_penalty_once_each():
    seen = []

    def record(optimizer, args, kwargs):
        seen.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])

    model = network()
    reg = normloss.NormLoss(model, lam=0.5)
    muon = torch.optim.Muon([model[0].weight], lr=0.01, weight_decay=0.0)
    adamw = torch.optim.AdamW([model[2].weight], lr=0.01, weight_decay=0.0)
    for optimizer in (muon, adamw):
        reg.hook(optimizer)
        optimizer.register_step_pre_hook(record)
    clear(model)
    before = copy.deepcopy(model)
    muon.step()
    adamw.step()
    for (gradient,), layer in zip(seen, (before[0], before[2]), strict=True):
        w = layer.weight.detach()
        torch.testing.assert_close(gradient, (1 - 1 / w.norm(dim=1, keepdim=True)) * w)


def test_covered_weights_that_no_hooked_optimizer_holds_are_named_once():
    model = network()
    reg = normloss.NormLoss(model, lam=0.5)
    optimizer = sgd(model[0].parameters())
    reg.hook(optimizer)
    clear(model)
    with pytest.warns(UserWarning, match="NormLoss covers weights that no hooked optimizer holds.*: 2$"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


@pytest.mark.parametrize(
    "method", [lambda m: normloss.PBWN(m, layers="linear", every=2), lambda m: normloss.Stiefel(m, layers="linear")]
)
def test_projections_serve_the_weights_of_the_optimizer_that_stepped(method):
    model = network()
    reg = method(model)
    first, second = sgd(model[0].parameters()), sgd(model[2].parameters())
    reg.hook(first), reg.hook(second)
    for _ in range(2):
        with torch.no_grad():
            model[0].weight.mul_(2), model[2].weight.mul_(2)
        clear(model)
        first.step()
    sizes = torch.linalg.svdvals(model[0].weight) if isinstance(reg, normloss.Stiefel) else reg.norms()["0"]
    torch.testing.assert_close(sizes, torch.ones_like(sizes))
    assert model[2].weight.norm(dim=1).min() > 1.5


def test_an_optimizer_that_holds_nothing_covered_is_refused():
    model = network()
    reg = normloss.NormLoss(model, lam=0.5)
    with pytest.raises(ValueError, match=r"this SGD holds none of the weights that NormLoss covers \(0, 2\)"):
        reg.hook(sgd(network().parameters()))
    for thing in (None, 3, model, [sgd(model.parameters())]):
        with pytest.raises(ValueError, match="hook needs a torch.optim.Optimizer, got"):
            reg.hook(thing)


# accumulation ------------------------------------------------------------------------------------------------


def accumulated(form: str, every: int = 4, steps: int = 8, set_to_none: bool = True, fused: bool = False) -> nn.Module:
    """The loops that are seen: with an optimizer that steps on each `every`-th batch."""
    model = network()
    reg = normloss.NormLoss(model, lam=0.5)
    optimizer = sgd(model.parameters(), fused=fused)
    if form == "hook":
        reg.hook(optimizer)
    for k, (x, y) in enumerate(batches(steps), 1):
        (loss_of(model, x, y) / every).backward()
        take = k % every == 0
        if form == "naive" or (form == "right" and take):
            reg.before_step()
        if take:  # as accelerate's optimizer does it, without telling
            optimizer.step()
        if form == "naive" or (form == "right" and take):
            reg.after_step()
        if take:
            optimizer.zero_grad(set_to_none=set_to_none)
    return model


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("form", ["naive", "hook"])
def test_accumulation_gets_the_penalty_once_for_each_update(form, set_to_none, fused):
    expected = accumulated("right")
    ours = accumulated(form, set_to_none=set_to_none, fused=fused)
    for a, b in zip(ours.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_accelerates_accumulation_from_the_readmes_loop():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4)
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(4.0)
    reg = normloss.NormLoss(model, lam=0.1)
    model, optimizer = accelerator.prepare(model, sgd(model.parameters()))
    for _ in range(4):
        with accelerator.accumulate(model):
            accelerator.backward(0 * model(torch.ones(1, 1)).sum())
            reg.before_step()
            optimizer.step()
            reg.after_step()
            optimizer.zero_grad()
    assert model.weight.item() == pytest.approx(4 - 0.1 * 2 * 0.1 * 3)  # 3.94; 3.76 with the penalty four times


def test_gradients_clipped_between_two_calls_for_one_step_are_refused():
    model = network()
    reg = normloss.NormLoss(model, lam=0.5)
    for k, (x, y) in enumerate(batches(2)):
        loss_of(model, x, y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        if k == 0:
            reg.before_step()
    with pytest.raises(ValueError, match="before_step\\(\\) came twice for one optimizer.step\\(\\).* after clipping"):
        reg.before_step()


def test_calling_twice_or_beside_a_hook_counts_once():
    for hooked in (False, True):
        model = network()
        reg = normloss.NormLoss(model, lam=0.5)
        optimizer = sgd(model.parameters())
        clear(model)
        if hooked:
            reg.hook(optimizer)
        else:
            reg.before_step()
        reg.before_step()
        optimizer.step()
        reg.after_step()
        assert_pulled(model, pulled_once())


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("case", ["skipped by GradScaler", "lr 0", "cleared", "manual"])
def test_what_looks_like_a_second_call_and_is_legitimate_gets_the_penalty(case, set_to_none):
    model = network()
    reg = normloss.NormLoss(model, lam=0.5)
    optimizer = sgd(model.parameters(), lr=0.0 if case == "lr 0" else 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    (x, y), (v, z) = batches(2)
    loss = loss_of(model, x, y) * (float("inf") if case.startswith("skipped") else 1.0)
    if case.startswith("skipped"):
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        reg.before_step()
        scaler.step(optimizer)
        scaler.update()
    else:
        loss.backward()
        reg.before_step()
        if case == "lr 0":
            optimizer.step()
        if case == "manual":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.0 * parameter.grad
    optimizer.zero_grad(set_to_none=set_to_none)
    loss_of(model, v, z).backward()
    task = [parameter.grad.clone() for parameter in model.parameters()]
    reg.before_step()
    for parameter, gradient in zip(model.parameters(), task, strict=True):
        w = parameter.detach()
        penalty = (1 - 1 / w.norm(dim=1, keepdim=True)) * w if w.ndim > 1 else 0 * w
        torch.testing.assert_close(parameter.grad, gradient + penalty)


def test_two_optimizers_that_step_in_turn_each_get_the_penalty_once():
    """As in a GAN: one call for the whole model each time, the other network's gradients stay for long."""
    model, alone = network(), network()
    reg, apart = normloss.NormLoss(model, lam=0.5), normloss.NormLoss(alone, lam=0.5)
    ours, theirs = ([sgd(m[0].parameters()), sgd(m[2].parameters())] for m in (model, alone))
    for k, (x, y) in enumerate(batches(6)):
        optimizer = ours[k % 2]
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        reg.before_step()
        optimizer.step()
        optimizer = theirs[k % 2]
        alone.zero_grad()
        loss_of(alone, x, y).backward()
        apart.before_step(optimizer)
        optimizer.step()
    assert equal(model, alone)


# closures and wrappers -----------------------------------------------------------------------------------------


def test_lbfgs_with_a_line_search_minimizes_loss_and_penalty():
    x, y = batches(1)[0]

    def objective(model):
        penalty = sum((1 - layer.weight.norm(dim=1)).square().sum() for layer in (model[0], model[2]))
        return loss_of(model, x, y) + 5.0 * penalty

    def fit(penalized: bool) -> float:
        model = network()
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=60, line_search_fn="strong_wolfe")
        if not penalized:
            normloss.NormLoss(model, lam=5.0).hook(optimizer)

        def closure():
            optimizer.zero_grad()
            loss = objective(model) if penalized else loss_of(model, x, y)
            loss.backward()
            return loss

        optimizer.step(closure)
        return objective(model).item()

    assert fit(penalized=False) == pytest.approx(fit(penalized=True), rel=1e-2)


class Sam(torch.optim.Optimizer):
    """davda54/sam in short: an optimizer that steps through another, in two calls."""

    def __init__(self, params, base, rho=0.05, **options):
        super().__init__(params, dict(rho=rho, **options))
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        norm = torch.stack([p.grad.norm() for g in self.param_groups for p in g["params"]]).norm()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old"] = p.data.clone()
                p.add_(p.grad * group["rho"] / norm)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data = self.state[p]["old"]
        self.base_optimizer.step()
        self.zero_grad()

    def step(self, closure=None):
        closure = torch.enable_grad()(closure)
        self.first_step()
        closure()
        self.second_step()


class Wrapper:
    """A wrapper that is no optimizer, as trainers have them."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        self.optimizer.step()


class Unpatched(torch.optim.Optimizer):
    def __init__(self, params):
        self.param_groups, self.state = [{"params": list(params)}], {}

    def step(self):
        pass


@pytest.mark.parametrize("in_two_calls", [True, False])
def test_sam_gets_the_penalty_of_the_weights_that_it_updates(in_two_calls):
    results = []
    for hooked in (True, False):
        model = network()
        reg = normloss.NormLoss(model, lam=0.5)
        optimizer = Sam(model.parameters(), torch.optim.SGD, lr=0.1)
        if hooked:
            reg.hook(optimizer)
        for x, y in batches(3):
            loss_of(model, x, y).backward()
            if in_two_calls and hooked:
                optimizer.first_step()
                loss_of(model, x, y).backward()
                optimizer.second_step()
            elif hooked:
                optimizer.step(lambda m=model, x=x, y=y: loss_of(m, x, y).backward())
            else:
                old = copy.deepcopy(model)
                optimizer.first_step()
                loss_of(model, x, y).backward()
                for layer, before in ((model[0], old[0]), (model[2], old[2])):
                    w = before.weight.detach()
                    layer.weight.grad += (1 - 1 / w.norm(dim=1, keepdim=True)) * w
                optimizer.second_step()
        results.append(model)
    for a, b in zip(*(model.parameters() for model in results), strict=True):
        torch.testing.assert_close(a, b)


def test_an_optimizer_inside_a_wrapper_is_found():
    model = network()
    inner = sgd(model.parameters())
    normloss.NormLoss(model, lam=0.5).hook(Wrapper(Wrapper(inner)))
    clear(model)
    inner.step()
    assert_pulled(model, pulled_once())


def test_accelerates_optimizer_is_hooked():
    accelerate = pytest.importorskip("accelerate")
    model = network()
    reg = normloss.NormLoss(model, lam=0.5)
    model, optimizer = accelerate.Accelerator(cpu=True).prepare(model, sgd(model.parameters()))
    reg.hook(optimizer)
    clear(model)
    optimizer.step()
    assert_pulled(model, pulled_once())


def test_steps_that_no_hook_sees_are_refused_in_one_line():
    class TwoCalls(torch.optim.SGD):
        def second_step(self):
            pass

    model = network()
    reg = normloss.NormLoss(model, lam=0.5)
    with pytest.raises(ValueError, match="TwoCalls steps in two calls"):
        reg.hook(TwoCalls(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"Unpatched.step\(\) runs no hooks"):
        reg.hook(Unpatched(model.parameters()))


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("how", ["hook", "explicit", "given"])
def test_weight_decay_beside_norm_loss_is_named_once(how, decoupled):
    model = network()
    reg = normloss.NormLoss(model, lam=0.5, decoupled=decoupled)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning) as caught:
        if how == "hook":
            reg.hook(optimizer)
        for x, y in batches(3):
            optimizer.zero_grad()
            loss_of(model, x, y).backward()
            if how != "hook":
                reg.before_step(optimizer if how == "given" else None)
            optimizer.step()
            if how != "hook":
                reg.after_step(optimizer)
    said = [str(warning.message) for warning in caught]
    assert len(said) == 1
    assert said[0].startswith("NormLoss and AdamW(weight_decay=0.01) both act on 0, 2: norm loss replaces weight decay")


def test_weight_decay_of_other_weights_is_fine():
    model = network()
    biases = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [
        {"params": biases, "weight_decay": 0.1},
        {"params": [model[0].weight, model[2].weight], "weight_decay": 0},
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = torch.optim.AdamW(groups, lr=0.1)
        normloss.NormLoss(model, lam=0.5).hook(optimizer)
        clear(model)
        optimizer.step()


# decoupled --------------------------------------------------------------------------------------------------------


OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.3, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.0),
    "Muon": lambda parameters: torch.optim.Muon([p for p in parameters if p.ndim == 2], lr=0.02, weight_decay=0.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("hooked", [True, False])
def test_decoupled_norm_loss_is_its_formula_after_the_plain_step_over_a_schedule(name, hooked):
    ours, theirs = network().double(), network().double()
    reg = normloss.NormLoss(ours, lam=0.3, decoupled=True)
    optimizers = [OPTIMIZERS[name](list(model.parameters())) for model in (ours, theirs)]
    schedules = [torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5) for optimizer in optimizers]
    if hooked:
        reg.hook(optimizers[0])
    for x, y in batches(8):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            model.zero_grad()
            loss_of(model, x.double(), y).backward()
            if model is ours and not hooked:
                reg.before_step()
            optimizer.step()
            if model is ours and not hooked:
                reg.after_step(optimizer)
        lr = optimizers[1].param_groups[0]["lr"]
        with torch.no_grad():
            for layer in (theirs[0], theirs[2]):
                w = layer.weight
                w -= lr * 2 * 0.3 * (1 - 1 / w.norm(dim=1, keepdim=True)) * w
        for schedule in schedules:
            schedule.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_decoupled_takes_the_lr_of_each_weights_group():
    model, expected = network(), pulled_once(lr=0.1)
    reg = normloss.NormLoss(model, lam=0.5, decoupled=True)
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.02}]
    optimizer = sgd(groups)
    clear(model)
    optimizer.step()
    reg.after_step(optimizer)
    torch.testing.assert_close(model[0].weight, expected[0].weight)
    torch.testing.assert_close(model[2].weight, pulled_once(lr=0.02)[2].weight)


def test_decoupled_leaves_alone_what_has_no_gradient_and_what_is_frozen():
    model = network()
    reg = normloss.NormLoss(model, lam=0.5, decoupled=True)
    optimizer = sgd(model.parameters())
    reg.hook(optimizer)
    kept = copy.deepcopy(model)
    optimizer.step()
    assert equal(model, kept)
    clear(model)
    model[0].weight.requires_grad_(False)
    optimizer.step()
    assert torch.equal(model[0].weight, kept[0].weight)
    torch.testing.assert_close(model[2].weight, pulled_once()[2].weight)


def test_decoupled_changes_no_gradient_and_skips_with_gradscaler():
    for fused in (False, True):
        model = network()
        reg = normloss.NormLoss(model, lam=0.5, decoupled=True)
        optimizer = sgd(model.parameters(), fused=fused)
        reg.hook(optimizer)
        kept = copy.deepcopy(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        x, y = batches(1)[0]
        scaler.scale(loss_of(model, x, y) * float("inf")).backward()
        scaler.step(optimizer)
        assert equal(model, kept)


def test_decoupled_without_a_learning_rate_is_refused():
    model = network()
    reg = normloss.NormLoss(model, lam=0.5, decoupled=True)
    for each in (reg, normloss.Chain(normloss.WeightDecay(model, lam=0.1), reg)):
        with pytest.raises(ValueError, match=r"decoupled NormLoss needs the lr: call after_step\(optimizer\)"):
            each.after_step()
    with pytest.raises(ValueError, match="decoupled NormLoss does not go with LBFGS"):
        reg.hook(torch.optim.LBFGS(model.parameters()))


@pytest.mark.parametrize(("lr_lam", "factor"), [(0.25, 0.5), (0.5, 0.0), (0.75, -0.5)])
def test_a_decoupled_step_scales_the_distance_from_norm_one(lr_lam, factor):
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.8, 2.4]]))  # norm 3
    reg = normloss.NormLoss(layer, lam=lr_lam / 0.1, decoupled=True)
    optimizer = sgd(layer.parameters())
    reg.after_step(optimizer)
    assert layer.weight.norm().item() == pytest.approx(1 + factor * 2, rel=1e-5)


def test_a_run_with_decoupled_norm_loss_trains_and_its_default_is_no_part_of_an_identity(config, tmp_path):
    import train as script
    from normloss.runs import records, store

    base = ("dataset=digits", "model=resnet8", "reg=nl", "train.max_steps=3", "wandb.mode=disabled", "device=cpu",
            "threads=1", f"store={tmp_path}")  # fmt: skip
    plain, off, on = config(*base), config(*base, "reg.decoupled=false"), config(*base, "reg.decoupled=true")
    assert plain.id == off.id != on.id
    script.train(on, store.open_run(on))
    script.train(plain, store.open_run(plain))
    norms = [records.load_run(tmp_path / cfg.id).final["norm_mean"] for cfg in (on, plain)]
    assert norms[0] != norms[1]
