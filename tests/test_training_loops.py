"""Each row of docs/in-your-training-loop.md: one update, in float64, against equation 12 in closed form."""

import copy
import warnings
from functools import partial

import pytest
import schedulefree
import timm.optim
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normloss
from tests.closed_form import (
    LAM,
    LR,
    assert_close,
    backward,
    batches,
    mean_loss,
    network,
    norm_loss,
    pull,
    sgd,
    updated,
)

# one update --------------------------------------------------------------------------------------------------


def one(model, **options):
    return [norm_loss(model, **options)]


SETUPS = {  # the regularizers and the optimizers of a network
    "plain": (one, lambda m: [sgd(m.parameters())]),
    "two optimizers": (one, lambda m: [sgd(m[0].parameters()), sgd(m[2].parameters())]),
    "two regularizers": (lambda m: one(m, lam=0.1) + one(m, lam=0.2), lambda m: [sgd(m.parameters())]),
    "Chain": (lambda m: [normloss.Chain(*one(m, lam=0.1), *one(m, lam=0.2))], lambda m: [sgd(m.parameters())]),
    "timm": (one, lambda m: [timm.optim.create_optimizer_v2(m, "momentum", lr=LR, weight_decay=0.0, momentum=0.0)]),
}


def by_hand(model, micro, setup="plain", call=False, clip=1e9):
    regs, optimizers = (make(model) for make in SETUPS[setup])
    for optimizer in [] if call else optimizers:
        regs[0].hook(optimizer)
    backward(model, micro)
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    for optimizer in optimizers:
        for reg in regs if call else []:
            reg.before_step(optimizer)
        optimizer.step()
        for reg in regs if call else []:
            reg.after_step(optimizer)


def closure(model, micro):
    optimizer = sgd(model.parameters())
    norm_loss(model).hook(optimizer)

    def work():
        optimizer.zero_grad()
        loss = mean_loss(model, micro)
        loss.backward()
        return loss

    assert optimizer.step(work).item() > 0


def optimizer_in_backward(model, micro):
    reg = norm_loss(model)
    optimizers = {parameter: sgd([parameter]) for parameter in model.parameters()}
    for weight in reg.weights:
        reg.hook(optimizers[weight])

    def step(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    mean_loss(model, micro).backward()


def grad_scaler(model, micro):
    """Explicit calls; test_methods.py hooks every method under GradScaler."""
    reg, optimizer = norm_loss(model), sgd(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(mean_loss(model, micro)).backward()
    scaler.unscale_(optimizer)
    reg.before_step()
    scaler.step(optimizer)


def accelerate(model, micro, call=False):
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True, gradient_accumulation_steps=len(micro))
    reg = norm_loss(model)
    model, optimizer = accelerator.prepare(model, sgd(model.parameters()))
    if not call:
        reg.hook(optimizer)
    for x, y in micro:
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(x), y))
            if call and accelerator.sync_gradients:
                reg.before_step()
            optimizer.step()
            if call and accelerator.sync_gradients:
                reg.after_step()
            optimizer.zero_grad()


def lightnings_trainer(model, micro, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning = pytest.importorskip("lightning.pytorch")

        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.model = model
                self.reg = norm_loss(model)

            def training_step(self, batch, batch_idx):
                return F.cross_entropy(self.model(batch[0]), batch[1])

            def configure_optimizers(self):
                optimizer = sgd(self.parameters())
                self.reg.hook(optimizer)
                return optimizer

        trainer = lightning.Trainer(
            accelerator="cpu", max_epochs=1, accumulate_grad_batches=len(micro), logger=False, barebones=True, **options
        )
        trainer.fit(Module(), torch.utils.data.DataLoader(micro, batch_size=None))
    assert trainer.global_step == 1


def hugging_faces_trainer(model, micro):
    transformers = pytest.importorskip("transformers")

    class Task(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x, labels):
            return {"loss": F.cross_entropy(self.model(x), labels)}

    class Hook(transformers.TrainerCallback):
        def on_train_begin(self, args, state, control, optimizer=None, **others):
            reg.hook(optimizer)

    task = Task()
    reg = norm_loss(task)
    rows = [{"x": image, "labels": label} for x, y in micro for image, label in zip(x, y, strict=True)]
    arguments = transformers.TrainingArguments(
        "unused", max_steps=1, per_device_train_batch_size=8, gradient_accumulation_steps=len(micro), optim="sgd",
        learning_rate=LR, weight_decay=0.0, max_grad_norm=0.0, lr_scheduler_type="constant", use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    transformers.Trainer(model=task, args=arguments, train_dataset=rows, callbacks=[Hook()]).train()


LOOPS = {
    **{f"{setup}, called": partial(by_hand, setup=setup, call=True) for setup in SETUPS},
    **{f"{setup}, hooked": partial(by_hand, setup=setup) for setup in SETUPS if setup != "two regularizers"},
    "closure, hooked": closure,
    "optimizers in backward": optimizer_in_backward,
    "GradScaler, called": grad_scaler,
    "Accelerate, hooked": accelerate,
    "Accelerate, called": partial(accelerate, call=True),
    "Lightning": lightnings_trainer,
    "Hugging Face": hugging_faces_trainer,
}


def marked(names) -> list:
    """Trainers that take seconds to import are slow."""
    return [pytest.param(n, marks=pytest.mark.slow) if n in ("Lightning", "Hugging Face") else n for n in names]


@pytest.mark.parametrize("n", [1, 3], ids=["1 micro-batch", "3 micro-batches"])
@pytest.mark.parametrize("name", marked(LOOPS))
def test_one_update_is_the_closed_form(name, n):
    expected = updated(model := network(), batches(n))
    LOOPS[name](model, batches(n))
    assert_close(model, expected)


@pytest.mark.parametrize("name", marked(["plain, hooked", "plain, called", "Lightning"]))
def test_a_task_clipped_to_nothing_leaves_the_penalty(name):
    LOOPS[name](model := network(), batches(), **{"gradient_clip_val" if name == "Lightning" else "clip": 1e-30})
    assert_close(model, updated(network(), []))


def test_each_call_of_before_step_adds_the_penalty_to_what_is_there():
    model = network()
    reg = norm_loss(model)
    mean_loss(model, batches(1)).backward(create_graph=True)
    for frozen in (False, True):
        model[0].requires_grad_(not frozen)
        before = [p.grad.detach().clone() for p in model.parameters()]
        reg.before_step()
        for p, g in zip(model.parameters(), before, strict=True):
            torch.testing.assert_close(p.grad.detach(), g + p.requires_grad * pull(p.detach()))
    model.zero_grad()  # gradients with a graph are a cycle


# other people's optimizers: several updates against the penalty in the loss ----------------------------------


def schedule_free(model):
    optimizer = schedulefree.SGDScheduleFree(model.parameters(), lr=LR)
    optimizer.train()
    return optimizer


OTHERS = {
    "momentum": lambda model: sgd(model.parameters(), momentum=0.9),
    "Lookahead": lambda model: timm.optim.Lookahead(sgd(model.parameters(), momentum=0.9), k=2),
    "schedule-free": schedule_free,
}


def penalized(model: nn.Module, micro: list) -> Tensor:
    penalty = sum((1 - layer.weight.norm(dim=1)).square().sum() for layer in (model[0], model[2]))
    return mean_loss(model, micro) + LAM * penalty


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_a_hook_trains_as_the_penalty_in_the_loss(make):
    trained = []
    for hook in (True, False):
        model = network()
        optimizer = make(model)
        if hook:
            norm_loss(model).hook(optimizer)
        for batch in batches(4):
            optimizer.zero_grad()
            (mean_loss(model, [batch]) if hook else penalized(model, [batch])).backward()
            optimizer.step()
        trained.append(model)
    assert_close(*trained)


def test_lbfgs_with_a_line_search_minimizes_loss_and_penalty():
    def fit(hook: bool) -> float:
        model = network()
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=60, line_search_fn="strong_wolfe")
        if hook:
            norm_loss(model).hook(optimizer)

        def closure():
            optimizer.zero_grad()
            loss = mean_loss(model, batches(1)) if hook else penalized(model, batches(1))
            loss.backward()
            return loss

        optimizer.step(closure)
        return penalized(model, batches(1)).item()

    assert fit(True) == pytest.approx(fit(False), rel=1e-2)


class Sam(torch.optim.Optimizer):
    """davda54/sam in short: an optimizer that steps through another, in two calls."""

    def __init__(self, params, **options):
        super().__init__(params, options)
        self.base_optimizer = sgd(self.param_groups)

    def first_step(self):
        for p in self.param_groups[0]["params"]:
            self.state[p]["old"] = p.data.clone()
            p.data.add_(p.grad, alpha=0.05)
        self.zero_grad()

    def second_step(self):
        for p in self.param_groups[0]["params"]:
            p.data = self.state[p]["old"]
        self.base_optimizer.step()

    def step(self, closure):
        self.first_step()
        torch.enable_grad()(closure)()
        self.second_step()


class Private(torch.optim.Optimizer):
    """What Opacus does in short: gradients are clipped and noised, then another optimizer steps."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.original_optimizer = optimizer

    def step(self, closure=None) -> None:
        generator = torch.Generator().manual_seed(2)
        for group in self.original_optimizer.param_groups:
            for p in group["params"]:
                p.grad.mul_(0.5).add_(torch.randn(p.shape, generator=generator, dtype=p.dtype), alpha=0.1)
        self.original_optimizer.step()


def sam(model, hook, in_two_calls=False):
    optimizer = Sam(model.parameters())
    hook(optimizer)
    backward(model, batches(1))
    if in_two_calls:
        optimizer.first_step()
        backward(model, batches(1))
        optimizer.second_step()
    else:
        optimizer.step(lambda: backward(model, batches(1)))


def opacus(model, hook):
    optimizer = Private(sgd(model.parameters()))
    hook(optimizer)
    backward(model, batches(1))
    optimizer.step()


@pytest.mark.parametrize("step", [sam, partial(sam, in_two_calls=True), opacus], ids=["SAM", "SAM twice", "Opacus"])
def test_an_optimizer_around_another_leaves_the_penalty_of_the_weights_updated_as_it_is(step):
    ours, theirs = network(), network()
    step(ours, norm_loss(ours).hook)
    step(theirs, lambda optimizer: None)
    with torch.no_grad():
        for p, w in zip(theirs.parameters(), network().parameters(), strict=True):
            p -= LR * pull(w)
    assert_close(ours, theirs)


@pytest.mark.parametrize("method", ["PBWN", "Stiefel"])
def test_projections_serve_the_weights_of_the_optimizer_that_stepped(method):
    model = network()
    reg = getattr(normloss, method)(model, layers="linear", **({"every": 2} if method == "PBWN" else {}))
    optimizers = [sgd(model[0].parameters()), sgd(model[2].parameters())]
    for optimizer in optimizers:
        reg.hook(optimizer)
    for _ in range(2):
        with torch.no_grad():
            model[0].weight.mul_(2), model[2].weight.mul_(2)
        backward(model, batches(1))
        optimizers[0].step()
    sizes = torch.linalg.svdvals(model[0].weight) if method == "Stiefel" else reg.norms()["0"]
    torch.testing.assert_close(sizes, torch.ones_like(sizes))
    assert model[2].weight.norm(dim=1).min() > 1.5


@pytest.mark.parametrize("decoupled", [False, True])
def test_a_whole_step_can_be_compiled(decoupled):
    trained = []
    for compiled in (True, False):
        model = network()
        reg, optimizer = norm_loss(model, decoupled=decoupled), sgd(model.parameters(), momentum=0.9)

        def step(batch, model=model, reg=reg, optimizer=optimizer):
            optimizer.zero_grad()
            backward(model, [batch])
            reg.before_step()
            optimizer.step()
            reg.after_step(optimizer)

        torch._dynamo.reset()
        run = torch.compile(step, backend="eager") if compiled else step
        for batch in batches(4):
            run(batch)
        trained.append(model)
    assert_close(*trained)


def test_a_hooked_step_gets_its_arguments_as_they_came():
    class Counted(torch.optim.SGD):
        def step(self, closure=None, number=None, *, name="none"):
            self.got = closure, number, name
            return super().step(closure if callable(closure) else None)

    model = network()
    optimizer = Counted(model.parameters(), lr=LR)
    norm_loss(model).hook(optimizer)
    backward(model, batches(1))
    optimizer.step(5, 77, name="here")  # no closure: what cannot be called is none
    assert optimizer.got == (5, 77, "here")
    optimizer.step(closure=lambda: mean_loss(model, batches(1)), number=78)
    assert callable(optimizer.got[0]) and optimizer.got[1:] == (78, "none")


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


class Wrapper:
    """A wrapper that is no optimizer, as trainers have them."""

    def __init__(self, optimizer):
        self.optimizer, self.step = optimizer, optimizer.step


class Unpatched(torch.optim.Optimizer):
    def __init__(self, params):
        self.param_groups, self.state = [{"params": list(params)}], {}

    def step(self):
        pass


def test_what_cannot_be_hooked_is_refused_in_one_line_and_a_wrapper_is_looked_through():
    model = network()
    reg = norm_loss(model)
    two_calls = type("TwoCalls", (torch.optim.SGD,), {"second_step": lambda self: None})
    for thing, words in [
        (sgd(network().parameters()), r"this SGD holds none of the weights that NormLoss covers \(0, 2\)"),
        (sgd([model[0].bias]), "holds none of the weights"),
        (None, "hook needs a torch.optim.Optimizer, got NoneType"),
        ([sgd(model.parameters())], "hook needs a torch.optim.Optimizer, got list"),
        (two_calls(model.parameters(), lr=0.1), "TwoCalls steps in two calls"),
        (Unpatched(model.parameters()), r"Unpatched.step\(\) runs no hooks"),
    ]:
        with pytest.raises(ValueError, match=words):
            reg.hook(thing)
    expected = updated(model, batches(1))
    outer = Wrapper(Wrapper(sgd(model.parameters())))
    reg.hook(outer)
    backward(model, batches(1))
    outer.step()
    assert_close(model, expected)


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
    model = network()
    reg = norm_loss(model, decoupled=decoupled)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning) as caught:
        if how == "hook":
            reg.hook(optimizer)
        for batch in batches(3):
            optimizer.zero_grad()
            backward(model, [batch])
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


def test_decoupled_without_a_learning_rate_is_refused():
    model = network()
    reg = norm_loss(model, decoupled=True)
    for each in (reg, normloss.Chain(normloss.WeightDecay(model, lam=0.1), reg)):
        with pytest.raises(ValueError, match=r"decoupled NormLoss needs the lr: call after_step\(optimizer\)"):
            each.after_step()
    with pytest.raises(ValueError, match="decoupled NormLoss does not go with LBFGS"):
        reg.hook(torch.optim.LBFGS(model.parameters()))


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
        (lambda reg, model, x: reg.loss(x, network()(x.detach())), "cannot be differentiated by the input"),
        (lambda reg, model, x: reg.loss(x.detach(), model(x)), "the input must require a gradient"),
        (lambda reg, model, x: torch.no_grad()(reg.loss)(x, model(x)), "needs gradients, which torch.no_grad"),
        (lambda reg, model, x: reg.hook(sgd(model.parameters())), "cannot be hooked: it needs the batch"),
    ],
)
def test_the_jacobian_penalty_refuses_what_it_cannot_differentiate_in_one_line(call, words):
    model = network()
    x = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=words) as caught:
        call(normloss.JacobianPenalty(model, lam=0.1), model, x)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("n_proj", [1, -1])
def test_the_jacobian_penalty_of_an_empty_batch_is_zero(n_proj):
    model, x = network(), torch.zeros(0, 4, dtype=torch.float64, requires_grad=True)
    assert float(normloss.JacobianPenalty(model, lam=0.1, n_proj=n_proj).loss(x, model(x))) == 0


def test_the_jacobian_penalty_says_that_fast_attention_has_no_double_backward_and_what_has():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(2, 3, 8, requires_grad=True)
    with pytest.raises(ValueError, match="fast attention has none: run the model under torch.nn.attention.sdpa_kernel"):
        normloss.JacobianPenalty(layer, lam=0.1).loss(x, layer(x).mean(1))
    with sdpa_kernel(SDPBackend.MATH):
        normloss.JacobianPenalty(layer, lam=0.1).loss(x, layer(x).mean(1)).backward()
    assert layer.linear1.weight.grad.abs().max() > 0
