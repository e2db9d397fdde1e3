"""The training loop: one step for every method, epochs, evaluation, resume.

Nothing is copied from the device inside a step: cross entropies and errors are added up there and read once an epoch
(and once a second for the progress line).
"""

import copy
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from normloss.config import Config, lam_at, lr_at
from normloss.data import ImageNetData, TensorData
from normloss.diagnostics import filter_norms
from normloss.errors import Diverged, Interrupted, UserError
from normloss.progress import Progress
from normloss.regularizers import Regularizer
from normloss.signals import StopRequest
from normloss.store import Run
from normloss.tracking import Mirror

Data = TensorData | ImageNetData


def setup(cfg: Config) -> torch.device:
    """Choose the device, seed torch and set threads and precision."""
    device = choose_device(cfg.device)
    torch.manual_seed(cfg.seed)
    torch.set_num_threads(cfg.threads or min(8, len(os.sched_getaffinity(0))))
    tf32 = "tf32" if cfg.train.precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = tf32
    torch.backends.cudnn.conv.fp32_precision = tf32
    torch.backends.cudnn.benchmark = not cfg.deterministic
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return device


def choose_device(name: str) -> torch.device:
    """auto: cuda, then mps, then cpu; raises UserError for a device that is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    device = torch.device(name)
    if not there[device.type] or (device.index or 0) >= max(1, torch.cuda.device_count()):
        raise UserError(f"device: must be there, got {name}; there are: {' '.join(k for k, v in there.items() if v)}")
    return device


def describe(device: torch.device) -> dict:
    """The device for meta.json."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": str(device), "device_name": name, "threads": torch.get_num_threads(), "cuda": torch.version.cuda}


# one step ----------------------------------------------------------------------------------------


def train_step(
    model: nn.Module, reg: Regularizer, optimizer: Optimizer, x: Tensor, y: Tensor, cfg: Config
) -> tuple[Tensor, Tensor]:
    """One optimizer update; the mean cross entropy of the batch, without the penalty, and its number of errors."""
    optimizer.zero_grad(set_to_none=True)
    ce_sum, wrong = x.new_zeros(()), y.new_zeros(())
    for k, (xb, yb) in enumerate(micro_batches(x, y, cfg.train.micro_batch)):
        with autocast(x.device, cfg.train.precision), running_statistics(model, update=k == 0):
            logits = model(xb)
        ce = F.cross_entropy(logits.float(), yb)
        share = len(xb) / len(x)
        ((ce + reg.loss(xb, logits)) * share).backward()
        ce_sum += ce.detach() * share
        wrong += (logits.detach().argmax(1) != yb).sum()
    reg.before_step()
    optimizer.step()
    reg.after_step()
    return ce_sum, wrong


def micro_batches(x: Tensor, y: Tensor, size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Slices that share batch-norm statistics; a last slice of one image joins the one before."""
    size = size or len(x)
    starts = list(range(0, len(x), size))
    if len(starts) > 1 and len(x) - starts[-1] == 1:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], len(x)], strict=True):
        yield x[start:end], y[start:end]


@contextmanager
def running_statistics(model: nn.Module, update: bool) -> Iterator[None]:
    """update=False: batch norm leaves its running statistics alone, as replicas other than the first do (README, D17)."""
    norms = [] if update else [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    yield
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


# epochs ------------------------------------------------------------------------------------------


@dataclass
class State:
    """Where the run is: with model, optimizer and regularizer, what a checkpoint holds."""

    epoch: int = 0  # under way, counted from 0
    step: int = 0  # done, over the run
    seconds: float = 0.0  # spent on the epoch under way
    ce: list[Tensor] = field(default_factory=list)  # of each step of the epoch under way
    wrong: list[Tensor] = field(default_factory=list)  # errors of each of these steps


def fit(
    model: nn.Module, reg: Regularizer, optimizer: Optimizer, data: Data, cfg: Config, run: Run, mirror: Mirror,
    stop: StopRequest,
) -> dict:
    """Train to the end from wherever the run is, and return the final metrics."""
    state = resume(model, reg, optimizer, run, data.device)
    last_step = min(cfg.train.epochs * data.steps_per_epoch, cfg.train.max_steps or float("inf"))
    progress = Progress(cfg, data, last_step, state.step)
    record = {}
    with stop.deferred(), progress:
        while state.step < last_step or not record:
            began = time.monotonic()

            def checkpoint(began=began) -> None:
                save(state, time.monotonic() - began, model, reg, optimizer, run, data)

            reg.lam = lam_at(cfg.reg, state.epoch)
            train_epoch(model, reg, optimizer, data, cfg, run, state, last_step, stop, progress, checkpoint)
            ce = check_finite(state, run)
            test = evaluate(model, data, cfg, stop)
            if stop:
                checkpoint()
                raise Interrupted(f"run {run.id} stopped by {stop.name} at step {state.step}; start it again to go on")
            images = images_of(state, data)
            norms = filter_norms(model)
            with torch.no_grad():
                penalty = float(reg.value())
            record = {
                "epoch": state.epoch + 1,
                "step": state.step,
                "lr": optimizer.param_groups[0]["lr"],
                "lam": reg.lam,
                "train_ce": float((ce * images).sum() / images.sum()),
                "train_error": 100 * float(sum(state.wrong)) / float(images.sum()),
                **test,
                "penalty": penalty,
                "norm_mean": norms.mean().item(),
                "norm_min": norms.min().item(),
                "norm_max": norms.max().item(),
                "seconds": state.seconds + time.monotonic() - began,
            }
            run.log_epoch(record, ce.numpy())
            mirror.log(record, ce.numpy())
            state = State(epoch=state.epoch + 1, step=state.step)
            save(state, 0.0, model, reg, optimizer, run, data)
            progress.epoch(record, images.sum().item())
    final = {key: value for key, value in record.items() if key not in ("epoch", "step", "seconds")}
    return {"epochs": record["epoch"], "steps": record["step"], **final}


def train_epoch(model, reg, optimizer, data, cfg, run, state, last_step, stop, progress, checkpoint) -> None:
    """The steps of the epoch under way, from the one that `state` is at."""
    model.train()
    for x, y in data.train(state.epoch, first_step=len(state.ce)):
        if stop:
            check_finite(state, run)
            checkpoint()
            raise Interrupted(f"run {run.id} stopped by {stop.name} at step {state.step}; start it again to go on")
        if state.step >= last_step:
            break
        for group in optimizer.param_groups:
            group["lr"] = lr_at(cfg.train, state.epoch, state.step)
        ce, wrong = train_step(model, reg, optimizer, x, y, cfg)
        state.ce.append(ce)
        state.wrong.append(wrong)
        state.step += 1
        run.beat(state.epoch, state.step)
        if progress.due:
            check_finite(state, run)
            progress.step(state, len(x))
        if run.checkpoint_due:
            check_finite(state, run)
            checkpoint()


@torch.inference_mode()
def evaluate(model: nn.Module, data: Data, cfg: Config, stop: StopRequest) -> dict[str, float]:
    """Cross entropy and top-1 and top-5 error (%) on the test set; top-5 counts all where there are fewer classes."""
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64)  # cross entropy, wrong, not among the five
    images = 0
    for batch, (x, y) in enumerate(data.test()):
        if stop or batch == cfg.train.eval_batches:
            break
        with autocast(x.device, cfg.train.precision):
            logits = model(x)
        logits = logits.float()
        top = logits.topk(min(5, logits.shape[1])).indices == y[:, None]  # (B, 5)
        ce = F.cross_entropy(logits, y, reduction="sum")
        sums = sums.to(x.device) + torch.stack([ce, (~top[:, 0]).sum(), (~top.any(1)).sum()]).double()
        images += len(x)
    ce, wrong, wrong5 = (sums / max(1, images)).tolist()
    return {"test_ce": ce, "test_error": 100 * wrong, "test_error_top5": 100 * wrong5}


def images_of(state: State, data: Data) -> Tensor:
    """How many images each step of the epoch under way saw: all batch_size but for the epoch's last."""
    images = torch.full((len(state.ce),), float(data.batch_size))
    if len(state.ce) == data.steps_per_epoch:
        images[-1] = min(data.batch_size, data.train_size - (data.steps_per_epoch - 1) * data.batch_size)
    return images


def check_finite(state: State, run: Run) -> Tensor:
    """The epoch's cross entropies on the CPU; ends the run as diverged at the first that is not finite."""
    ce = torch.stack(state.ce).cpu() if state.ce else torch.empty(0)  # device sync
    finite = ce.isfinite()
    if not finite.all():
        first = int((~finite).nonzero()[0])
        run.log_steps(ce[: first + 1].numpy())
        step = state.step - len(ce) + first + 1
        raise Diverged(f"run {run.id} diverged: the cross entropy of step {step} is {ce[first]}")
    return ce


# resume ------------------------------------------------------------------------------------------


def save(
    state: State, seconds: float, model: nn.Module, reg: Regularizer, optimizer: Optimizer, run: Run, data: Data
) -> None:
    """Everything that the rest of the run depends on, into the store."""
    device = data.device
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "reg": reg.state_dict(),
        "epoch": state.epoch,
        "step": state.step,
        "seconds": state.seconds + seconds,
        "ce": torch.stack(state.ce).cpu() if state.ce else torch.empty(0),
        "wrong": torch.stack(state.wrong).cpu() if state.wrong else torch.empty(0, dtype=torch.int64),
        "logged_steps": state.step - len(state.ce),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }
    run.save(checkpoint, state.epoch, state.step)


def resume(model: nn.Module, reg: Regularizer, optimizer: Optimizer, run: Run, device: torch.device) -> State:
    """The state of the newest whole checkpoint, loaded into its owners; a new one where there is none."""
    checkpoint = run.load(device)
    if checkpoint is None:
        return State()
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    reg.load_state_dict(checkpoint["reg"])
    torch.set_rng_state(checkpoint["rng"].cpu())
    if checkpoint["cuda_rng"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(checkpoint["cuda_rng"].cpu(), device)
    print(f"run {run.id}: going on from epoch {checkpoint['epoch'] + 1}, step {checkpoint['step']}", flush=True)
    return State(
        epoch=checkpoint["epoch"],
        step=checkpoint["step"],
        seconds=checkpoint["seconds"],
        ce=list(checkpoint["ce"].to(device)),
        wrong=list(checkpoint["wrong"].to(device)),
    )


# forecast ----------------------------------------------------------------------------------------


def forecast(model: nn.Module, data: Data, cfg: Config) -> float:
    """Seconds that the whole run will take on a CPU, from a few images through a copy of the model."""
    probe = copy.deepcopy(model).train()
    x, y = next(iter(data.train(0)))
    images = min(8, len(x))
    with torch.random.fork_rng(devices=[]):
        for _ in range(2):  # the first call pays for allocations
            began = time.perf_counter()
            F.cross_entropy(probe(x[:images]), y[:images]).backward()
            seconds = (time.perf_counter() - began) / images
    steps = min(cfg.train.epochs * data.steps_per_epoch, cfg.train.max_steps or float("inf"))
    evaluated = cfg.train.epochs * data.test_size / 3 if not cfg.train.eval_batches else 0
    return seconds * (steps * cfg.train.batch_size + evaluated)
