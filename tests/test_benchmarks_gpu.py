"""What bench.py gpu measures, driven on the CPU: CUDA graphs are stood in for, and the figures mean nothing here."""

import math
from functools import partial

import pytest
import torch

from benchmarks import gpu
from benchmarks.steps import NoiseBatches, StepLoop
from normloss import NormLoss
from normloss.training import executors
from tests.test_executors import Tape, assert_same

TINY = gpu.Net("tiny", ("dataset=digits", "model=resnet8", "train.batch_size=8", "threads=1"), images=10.0)
CPU = torch.device("cpu")


@pytest.mark.slow
def test_every_row_is_measured_and_judged(monkeypatch):
    monkeypatch.setattr(executors, "CudaCapture", Tape)
    monkeypatch.setattr(executors, "obstacle", lambda *_: None)
    monkeypatch.setattr(executors, "Compiled", partial(executors.Compiled, backend="eager"))
    measured = {row.subject: row for row in gpu.measure(blocks=1, device=CPU, nets=(TINY,), steps=2)}
    share = measured["tiny: data path, share of a step"]
    assert all(math.isfinite(row.value) and (row.value > 0 or row is share) for row in measured.values())
    assert {subject: row.target for subject, row in measured.items() if row.target} == {
        "tiny: step, nl / wd": "at most 1.01",
        "tiny: nl, graph": "at least 10",
        "tiny: graph, speed against eager": "at least 3",
        "tiny: compile, speed against eager": "at least 1",
        "tiny: two processes, speed against one": "at least 0.9",
        "tiny: data path, share of a step": "at most 2",
    }
    assert "tiny: step, nl by an autograd penalty / wd" in measured


def test_the_papers_networks_are_measured_as_they_are_trained():
    batches = {net.name: gpu.config_of(net).train for net in (gpu.RESNET110, gpu.WRN, gpu.RESNET50)}
    sizes = {name: (train.batch_size, train.micro_batch, train.precision) for name, train in batches.items()}
    assert sizes == {
        "ResNet110": (128, None, "fp32"),
        "WRN-28-10, bf16": (128, None, "bf16"),
        "ResNet-50, bf16": (128, 64, "bf16"),
    }


def test_the_penalty_in_the_loss_has_the_gradient_of_the_closed_form(config):
    cfg = config("dataset=digits", "model=resnet8", "reg=none", "device=cpu", "threads=1")
    weights = []
    for method in (NormLoss, gpu.AutogradNormLoss):
        torch.manual_seed(0)
        loop = StepLoop(cfg, CPU, NoiseBatches(cfg, CPU), lambda model, method=method: method(model, lam=0.3))
        loop.steps(3)
        weights.append(loop.model.state_dict())
    assert_same(*weights, rtol=1e-4, atol=1e-5)
