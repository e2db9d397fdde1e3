"""The whole of a run on one page: config -> folder -> data -> model -> regularizer -> optimizer -> epochs -> DONE."""

import shlex
import time
from collections.abc import Mapping
from typing import Any

from normloss.config import Config
from normloss.errors import UserError
from normloss.runs import store
from normloss.signals import SAVE_SECONDS, StopRequest
from normloss.training.distributed import SingleProcess, joined


def train(cfg: Config, stop: StopRequest | None = None, facts: Mapping[str, Any] | None = None) -> None:
    """Train the run of a config from wherever its folder says that it is to its end; return at once if it is done.

    stop: asks to save and leave (None: only the end of cfg.budget_minutes does). facts: further entries of meta.json.
    Raises a Stop: UserError, Diverged, Locked or Interrupted.
    """
    stop = StopRequest(deadline(cfg)) if stop is None else stop
    with joined(cfg) as group:  # torchrun's processes, or this one alone
        run = group.on_rank0(lambda: store.open_run(cfg)) or store.NullRun(cfg)  # the folder of this id, locked
        if not group.from_rank0(lambda: report_done(cfg, run)):
            fit(cfg, run, group, stop, {"at_once": 1} | dict(facts or {}))


def deadline(cfg: Config) -> float | None:
    """Return when a command that starts now has to save (seconds since the epoch); None without budget_minutes."""
    return None if cfg.budget_minutes is None else time.time() + 60 * cfg.budget_minutes - SAVE_SECONDS


def report_done(cfg: Config, run: store.Run) -> bool:
    """Return whether the run is done, and print it if so; raises UserError where its images have changed since."""
    if run.done:
        if cfg.dataset.name == "folder":  # the run's identity has the folder's name, not the images
            import torch

            from normloss import data

            run.check_data(data.build(cfg, torch.device("cpu")).fingerprint)
        print(f"run {run.id} ({cfg.label}) is done: {run.path}; its curves: {curves(cfg)}")
    return run.done


def curves(cfg: Config) -> str:
    """Return the command that draws the curves of a finished run."""
    store = "" if cfg.store == "results/runs" else f" store={shlex.quote(cfg.store)}"
    return f"python scripts/compare.py {cfg.id}{store}"


def fit(cfg: Config, run: store.Run, group: SingleProcess, stop: StopRequest, facts: Mapping[str, Any]) -> None:
    """Train an opened run to its end."""
    with run.session():
        import torch  # here, so that --help, completion and finished runs answer at once

        from normloss import data, models, regularizers
        from normloss.training import device as devices
        from normloss.training import executors, optimizer, tracking, trainer

        device = devices.setup(cfg)
        dataset = data.build(cfg, device, group.part)
        group.on_rank0(lambda: run.check_data(dataset.fingerprint))
        run.describe(**dataset.describe(), **devices.describe(device), **facts)
        model = models.build(cfg.model, cfg.dataset.num_classes, cfg.dataset.channels)
        model = model.to(device).to(memory_format=torch.channels_last)
        try:
            reg = regularizers.build(model, cfg.reg)  # may add parameters: before the optimizer
        except ValueError as error:
            raise UserError(f"reg={cfg.reg.name}: {error}") from None
        sgd = optimizer.build(model, cfg.train, device)
        executor = executors.build(cfg, model, reg, sgd, dataset, run, group)
        print(f"run {run.id} ({cfg.label}) on {device}, threads={torch.get_num_threads()}: {run.path}", flush=True)
        tracker = tracking.open_tracker(cfg, run) if group.is_rank0 else tracking.Tracker()
        try:
            loop = trainer.Trainer(cfg, model, reg, sgd, executor, dataset, run, tracker, stop, group)
            run.note(executor=executor.name, fused=sgd.defaults["fused"], start_seconds=round(time.process_time(), 2))
            final = loop.fit()
        except BaseException:
            tracker.close()
            raise
        run.finish(final)
        stop.finished()
        tracker.close(final)
    result = f"test error {final['test_error']:.2f} %"
    print(f"run {run.id} ({cfg.label}) is done: {result}, {run.path}; its curves: {curves(cfg)}")
