"""A CUDA device: the data path, the precisions, processes that share it, and runs that are killed. pytest -m cuda

Graphs are tested beside their CPU forms.
"""

import signal

import pytest
import torch

from normloss.data import build
from normloss.runs import records
from normloss.training import device as devices
from normloss.training.step import train_step
from tests.conftest import cuda, ran
from tests.forked import assert_same_end, start, status, the_run, wait_until
from tests.test_executors import assert_same, batches, parts

DIGITS = ("dataset=digits", "model=resnet8", "wandb.mode=disabled", "deterministic=true")
DROPOUT = ("model=wrn16_4", "model.width=1", "model.dropout=0.3", "recipe=digits_resnet8")
SHORT = ("train.batch_size=256", "train.epochs=3", "train.milestones=[2]", "train.eval_batches=1")


pytestmark = pytest.mark.usefixtures("ieee")


@cuda
def test_batches_are_those_of_a_cpu(config):
    cfg = config(*DIGITS, "dataset.flip=0.5")
    here, there = (build(cfg, torch.device(name)) for name in ("cpu", "cuda"))
    for (x, y), (device_x, device_y) in zip(here.train(1), there.train(1), strict=True):
        assert device_x.device.type == "cuda"
        assert_same(device_x.cpu(), x, rtol=1e-6, atol=1e-6)
        assert torch.equal(device_y.cpu(), y)


def cross_entropies(config, device: str, precision: str, steps: int = 6) -> torch.Tensor:
    cfg = config(*DIGITS, f"device={device}", f"train.precision={precision}", "train.batch_size=64")
    devices.setup(cfg)
    model, reg, optimizer, settings = parts(cfg, device)
    (x, y), *_ = batches([64], device)
    model.train()
    ce = [train_step(model, reg, optimizer, x, y, settings)[0] for _ in range(steps)]
    return torch.stack(ce).cpu()


@cuda
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("tf32", 2e-2), ("bf16", 5e-2)])
def test_every_precision_trains_as_a_cpu_does_in_fp32(config, precision, tolerance):
    expected = cross_entropies(config, "cpu", "fp32")
    assert_same(cross_entropies(config, "cuda", precision), expected, rtol=tolerance, atol=tolerance)


@cuda
@pytest.mark.parametrize("executor", ["graph", "eager"])
@pytest.mark.parametrize("what", [(), DROPOUT, ("reg=srip",)], ids=["nl", "dropout", "srip"])
def test_each_of_two_processes_that_share_the_device_trains_what_it_does_alone(tmp_path, executor, what):
    words = [*DIGITS, *SHORT, *what, "device=cuda", f"train.executor={executor}"]
    ran("train.py", "-m", *words, "seed=0,1", "hydra.launcher.jobs=2", f"store={tmp_path / 'shared'}")
    for seed in (0, 1):
        ran("train.py", *words, f"seed={seed}", f"store={tmp_path / 'alone'}")
    for own, other in zip(*(records.load_runs(tmp_path / path) for path in ("shared", "alone")), strict=True):
        assert own.id == other.id
        assert own.meta["executor"] == executor
        assert_same_end(own, other)


@cuda
@pytest.mark.parametrize("executor", ["graph", "eager"])
def test_a_run_that_is_killed_ends_as_if_it_had_not_been(tmp_path, executor):
    words = [*DIGITS, *DROPOUT, "device=cuda", f"train.executor={executor}", "train.epochs=4", "train.milestones=[2]"]
    ran("train.py", *words, f"store={tmp_path / 'straight'}")
    process = start(*words, f"store={tmp_path / 'killed'}", "checkpoint_minutes=0.0005")
    wait_until(lambda: status(tmp_path / "killed")["saved"] > 30, process)  # in the second epoch
    process.send_signal(signal.SIGKILL)
    process.communicate()
    ran("train.py", *words, f"store={tmp_path / 'killed'}")
    killed, whole = (the_run(tmp_path / path) for path in ("killed", "straight"))
    assert len(killed.meta["sessions"]) == 2
    assert_same_end(killed, whole)
