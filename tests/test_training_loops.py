"""Each row of docs/in-your-training-loop.md: one update, in float64, against equation 12 in closed form."""

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

    assert optimizer.step(closure=work).item() > 0


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
    """davda54/sam in short: an optimizer that steps through another."""

    def __init__(self, params, **options):
        super().__init__(params, options)
        self.base_optimizer = sgd(self.param_groups)

    def step(self, closure):
        for p in self.param_groups[0]["params"]:
            self.state[p]["old"] = p.data.clone()
            p.data.add_(p.grad, alpha=0.05)
        self.zero_grad()
        torch.enable_grad()(closure)()
        for p in self.param_groups[0]["params"]:
            p.data = self.state[p]["old"]
        self.base_optimizer.step()


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


def sam(model, hook):
    optimizer = Sam(model.parameters())
    hook(optimizer)
    backward(model, batches(1))
    optimizer.step(lambda: backward(model, batches(1)))


def opacus(model, hook):
    optimizer = Private(sgd(model.parameters()))
    hook(optimizer)
    backward(model, batches(1))
    optimizer.step()


@pytest.mark.parametrize("step", [sam, opacus], ids=["SAM", "Opacus"])
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
