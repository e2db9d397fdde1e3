"""Epochs, evaluation and resume around the step.

Cross entropies and errors stay on the device and are read once an epoch, at checkpoints, and once a second for the
progress bar.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from normloss.config import Config
from normloss.data import Data
from normloss.diagnostics import diagnostics, matrices, summary, turns
from normloss.errors import Diverged, Interrupted
from normloss.regularizers import Regularizer
from normloss.runs.store import Run
from normloss.signals import StopRequest
from normloss.training.device import LinAlgError, report_out_of_memory
from normloss.training.distributed import SingleProcess
from normloss.training.durations import total_steps
from normloss.training.eager import Eager
from normloss.training.optimizer import lam_at, lr_at
from normloss.training.progress import Progress, State
from normloss.training.step import autocast
from normloss.training.tracking import Tracker

KEYS = ("model", "optimizer", "reg", "epoch", "step", "seconds", "ce", "wrong", "rng", "cuda_rng")  # of a checkpoint


class Trainer:
    """The loop over a run's epochs, from the state that its folder holds to the end."""

    def __init__(
        self, cfg: Config, model: nn.Module, reg: Regularizer, optimizer: Optimizer, executor: Eager, data: Data,
        run: Run, tracker: Tracker, stop: StopRequest, group: SingleProcess,
    ) -> None:  # fmt: skip
        self.cfg, self.model, self.reg, self.optimizer = cfg, model, reg, optimizer
        self.executor, self.data, self.run, self.tracker = executor, data, run, tracker
        self.stop, self.group = stop, group
        self.last_step = total_steps(cfg, data.steps_per_epoch)
        self.state = self.resume()
        self.clock = time.monotonic()

    def fit(self) -> dict[str, Any]:
        """Train, evaluate and log epoch by epoch; returns the final metrics."""
        progress = Progress(self.cfg, self.last_step, self.state.step)
        with self.stop.noted(), progress.bar, self.report_errors():
            while self.state.step < self.last_step or self.state.ce:
                self.reg.lam = lam_at(self.cfg.reg, self.state.epoch)
                with progress.training(self.state, self.data.device):
                    self.train_epoch(progress)
                evaluated = self.group.from_rank0(self.evaluate)
                self.leave_if_asked()
                record, ce = self.measure(evaluated)
                self.run.log_epoch(record, ce)
                self.tracker.log(record)
                progress.epoch(record)
                self.state = State(epoch=self.state.epoch + 1, step=self.state.step)
                if self.state.step < self.last_step:
                    self.reg.after_epoch()
                if self.state.step >= self.last_step or self.run.checkpoint_due_after_epoch:
                    self.save()
        last = self.group.from_rank0(lambda: dict(self.run.epochs[-1]))
        return {"epochs": last.pop("epoch"), "steps": last.pop("step"), **last}

    def train_epoch(self, progress: Progress) -> None:
        """Take the rest of the current epoch's steps."""
        state, cfg = self.state, self.cfg.train
        self.model.train()
        if not state.ce:
            state.began = list(matrices(self.model).values())
        for x, y in self.data.train(state.epoch, first_step=len(state.ce)):
            self.leave_if_asked()
            if state.step >= self.last_step:
                break
            for group in self.optimizer.param_groups:
                group["lr"] = lr_at(cfg, state.epoch, state.step)
            ce, wrong = self.executor.step(x, y)
            state.ce.append(ce)
            state.wrong.append(wrong)
            state.step += 1
            self.run.beat(state.epoch, state.step)
            if self.group.is_rank0 and progress.due:  # only it prints, and notices first that the run diverged
                self.read_ce()
                progress.step(state)
            if self.run.checkpoint_due:
                self.save()

    def evaluate(self) -> dict[str, float]:
        parts = ("test", "val") if self.data.val_size else ("test",)
        return {k: v for part in parts for k, v in evaluate(self.model, self.data, self.cfg, self.stop, part).items()}

    def measure(self, evaluated: dict[str, float]) -> tuple[dict[str, Any], Any]:
        """Return the record of the epoch that just ended, and the cross entropies of its steps (numpy)."""
        state, ce, data = self.state, self.read_ce(), self.data
        images = torch.full(ce.shape, data.batch_size, dtype=torch.float64)  # that each of the epoch's steps saw
        if len(ce) == data.steps_per_epoch:
            images[-1] = min(data.batch_size, data.train_size - (len(ce) - 1) * data.batch_size)
        wrong = torch.stack(state.wrong).cpu()
        weights = summary(diagnostics(self.model))
        if state.began is not None:  # a checkpoint of version 0.1.0 in mid-epoch lacks it
            weights |= turns(state.began, self.model)
        with torch.no_grad():
            penalty = float(self.reg.value())
        for part in ("test", "val"):
            if not math.isfinite(evaluated.get(f"{part}_ce", 0.0)):
                what = f"the {part} cross entropy after step {state.step}"
                raise Diverged(f"run {self.run.id} diverged: {what} is not finite")
        self.tick()
        record = {
            "epoch": state.epoch + 1,
            "step": state.step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "lam": self.reg.lam,
            "train_ce": float((ce.double() * images).sum() / images.sum()),
            "train_error": 100 * float(wrong.sum() / images.sum()),
            **evaluated,
            "penalty": penalty,
            **weights,
            "seconds": state.seconds,
        }
        return record, ce.numpy()

    def read_ce(self) -> Tensor:
        """Return the epoch's cross entropies on the CPU; raises Diverged if one is not finite."""
        ce = torch.stack(self.state.ce).cpu()  # device sync
        finite = ce.isfinite()
        if not finite.all():
            first = int((~finite).nonzero()[0])
            self.run.log_steps(ce[: first + 1].numpy())
            step = self.state.step - len(ce) + first + 1
            before = f", after {ce[first - 1]:.4g} at step {step - 1}" if first else ""
            raise Diverged(f"run {self.run.id} diverged: the cross entropy of step {step} is {ce[first]}{before}")
        return ce

    @contextmanager
    def report_errors(self) -> Iterator[None]:
        """Within this block lack of memory interrupts the run, and a failed decomposition ends it as diverged."""
        try:
            with report_out_of_memory(self.data.device):
                yield
        except LinAlgError as error:
            line, last = str(error).splitlines()[0], ""
            if self.state.ce:
                ce = self.read_ce()  # weights that are not finite mostly follow a cross entropy that is not
                self.run.log_steps(ce.numpy())
                last = f", whose cross entropy was {ce[-1]:.4g}"
            raise Diverged(
                f"run {self.run.id} diverged: a decomposition failed after step {self.state.step}{last} ({line})"
            ) from None

    def leave_if_asked(self) -> None:
        if self.group.any(bool(self.stop)):
            self.save()
            self.group.barrier()  # torchrun ends rank 0 when another process has left
            at = f"{self.stop.name or 'another process'} at step {self.state.step}"
            raise Interrupted(f"run {self.run.id} stopped by {at}; rerun the command to resume")

    def tick(self) -> None:
        """Add the time since the last call to the current epoch."""
        now = time.monotonic()
        self.state.seconds += now - self.clock
        self.clock = now

    def save(self) -> None:
        """Save everything that the rest of the run depends on; raises Diverged rather than save such a state."""
        state, device = self.state, self.data.device
        ce = self.read_ce() if state.ce else torch.empty(0)
        self.tick()
        checkpoint = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "reg": self.reg.state_dict(),
            "epoch": state.epoch,
            "step": state.step,
            "seconds": state.seconds,
            "ce": ce,
            "wrong": torch.stack(state.wrong).cpu() if state.wrong else torch.empty(0, dtype=torch.int64),
            "began": state.began if state.ce else None,
            "logged_steps": state.step - len(ce),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }
        self.run.save(checkpoint, state.epoch, state.step)

    def resume(self) -> State:
        """Load the newest whole checkpoint into model, optimizer and regularizer; return its state, else a new one."""
        device = self.data.device
        own = device if self.group.part.world == 1 else torch.device("cpu")  # from where each takes it to its own
        checkpoint = self.group.from_rank0(lambda: self.run.load(own, KEYS))
        if checkpoint is None:
            return State()
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.reg.load_state_dict(checkpoint["reg"])
        torch.set_rng_state(checkpoint["rng"].cpu())
        if checkpoint["cuda_rng"] is not None and device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint["cuda_rng"].cpu(), device)
        print(f"run {self.run.id}: resuming at epoch {checkpoint['epoch'] + 1}, step {checkpoint['step']}", flush=True)
        return State(
            epoch=checkpoint["epoch"],
            step=checkpoint["step"],
            seconds=checkpoint["seconds"],
            ce=list(checkpoint["ce"].to(device)),
            wrong=list(checkpoint["wrong"].to(device)),
            began=[W.to(device) for W in checkpoint["began"]] if checkpoint.get("began") else None,
        )


@torch.inference_mode()
def evaluate(model: nn.Module, data: Data, cfg: Config, stop: StopRequest, part: str = "test") -> dict[str, float]:
    """Return cross entropy and top-1 error (%) on a part of the data, test or val; of test top-5 too.

    Top-5 is top-K of K < 5 classes. Cut short, and not to be used, if `stop` asks to leave.
    """
    model.eval()
    sums, images = [torch.empty(0, 3, device=data.device)], 0  # (batches, 3): cross entropy, wrong, not among the five
    for batch, (x, y) in enumerate(data.in_order(part)):
        if stop or batch == cfg.train.eval_batches:
            break
        with autocast(x.device, cfg.train.precision):
            logits = model(x)
        logits = logits.float()  # (B, K)
        hit = logits.topk(min(5, logits.shape[1])).indices == y[:, None]  # (B, 5)
        ce = F.cross_entropy(logits, y, reduction="sum")
        sums.append(torch.stack([ce, (~hit[:, 0]).sum(), (~hit.any(1)).sum()])[None])
        images += len(x)
    ce, wrong, wrong5 = (torch.cat(sums).cpu().double().sum(0) / images).tolist()  # device sync
    top5 = {"test_error_top5": 100 * wrong5} if part == "test" else {}
    return {f"{part}_ce": ce, f"{part}_error": 100 * wrong, **top5}
