"""One training run of the paper's suite, from config to records: python train.py --help

config -> run folder -> data -> model -> regularizer -> optimizer -> executor -> epochs -> final metrics
"""

if __name__ == "__main__":  # before the slow imports
    from normloss.cli import start

    start.prepare()

import time

import hydra
from omegaconf import DictConfig

from normloss import config, signals
from normloss.cli import entry
from normloss.runs import store
from normloss.runs.null_run import null_run
from normloss.sweeps import budget
from normloss.training import distributed


@hydra.main(config_path=str(config.CONFIGS), config_name="config", version_base="1.3")
@entry.statuses
def main(raw: DictConfig) -> None:
    cfg = config.check(raw)  # typed, or one line and exit status 2
    with distributed.joined(cfg) as group:  # torchrun's processes, or this one alone
        run = group.on_rank0(lambda: store.open_run(cfg)) or follower(cfg)  # the folder of this id, locked
        if not group.from_rank0(lambda: report_done(cfg, run)):
            train(cfg, run, group)


def report_done(cfg: config.Config, run: store.Run) -> bool:
    """Whether there is nothing left to do, told."""
    if run.done:
        if cfg.dataset.name == "folder":
            from normloss import data

            data.refuse_changed(cfg, run)  # its identity has the folder's name, not the images
        print(f"run {run.id} ({cfg.label}) is done: {run.path}")
    return run.done


def train(cfg: config.Config, run: store.Run, group: distributed.SingleProcess = distributed.SingleProcess()) -> None:
    """The run from wherever its folder says it is to the end."""
    stop = signals.StopRequest(budget.deadline(cfg.budget_minutes))
    with stop.installed(), run.session():
        import torch  # here, so that --help, completion and finished runs answer at once

        from normloss import data, models, regularizers
        from normloss.training import device as devices
        from normloss.training import executors, optimizer, progress, tracking, trainer

        device = devices.setup(cfg)
        dataset = data.build(cfg, device, group.part)
        group.on_rank0(lambda: run.check_data(dataset.fingerprint))
        run.describe(**dataset.describe(), **devices.describe(device))
        model = models.build(cfg.model, cfg.dataset.num_classes, cfg.dataset.channels)
        model = model.to(device).to(memory_format=torch.channels_last)
        with entry.user_error(f"reg={cfg.reg.name}", ValueError):
            reg = regularizers.build(model, cfg.reg)  # may add parameters: before the optimizer
        sgd = optimizer.build(model, cfg.train, device)
        executor = executors.build(cfg, model, reg, sgd, dataset, run, group)
        progress.announce(cfg, run, device)
        tracker = tracking.open_tracker(cfg, run) if group.is_rank0 else tracking.Tracker()
        try:
            loop = trainer.Trainer(cfg, model, reg, sgd, executor, dataset, run, tracker, stop, group)
            run.note(executor=executor.name, fused=sgd.defaults["fused"], start_seconds=round(time.process_time(), 2))
            final = loop.fit()
        except BaseException:
            tracker.leave()
            raise
        run.finish(final)
        tracker.finish(final)
    print(f"run {run.id} ({cfg.label}) is done: test error {final['test_error']:.2f} %, {run.path}")


if __name__ == "__main__":
    entry.run(main)
