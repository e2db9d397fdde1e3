"""The step and the loop, in one process, on tiny images."""

import copy
import math
import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normloss import models, regularizers
from normloss.config.shares import micro_batches
from normloss.data.digits import load
from normloss.data.tensors import TensorData
from normloss.runs import records
from normloss.signals import StopRequest
from normloss.training import progress
from normloss.training.step import train_step
from normloss.training.trainer import evaluate

DIGITS = ["dataset=digits", "model=resnet8"]


@pytest.fixture(scope="module")
def plain(trained, tmp_path_factory) -> records.RunRecord:
    return trained(tmp_path_factory.mktemp("plain"), "train.epochs=2")


def test_run_folder_holds_the_contract(plain):
    assert plain.state == "done"
    assert {path.name for path in plain.path.iterdir()} == {
        ".lock", "config.yaml", "meta.json", "status.json", "epochs.jsonl", "steps.npz", "last.pt", "DONE",
    }  # fmt: skip
    keys = "lr train_ce train_error test_ce test_error test_error_top5 penalty norm_mean norm_min norm_max seconds"
    assert set(keys.split()) <= set(plain.epochs[0])
    assert [epoch["epoch"] for epoch in plain.epochs] == [1, 2]
    step, ce = plain.steps()
    assert step.tolist() == list(range(1, 2 * 23 + 1))  # 1,437 images in batches of 64
    assert (step.dtype, ce.dtype) == (np.int64, np.float32)
    keys = "commit dirty versions device executor host started ended seconds_per_epoch peak_memory_mb start_seconds"
    assert set(keys.split()) <= set(plain.meta)
    assert plain.final["test_error"] == plain.epochs[-1]["test_error"]
    assert (plain.final["epochs"], plain.final["steps"]) == (2, 46)


def test_logged_cross_entropy_is_the_mean_over_images_without_the_penalty(plain):
    _, ce = plain.steps()
    images = np.array([64] * 22 + [1437 - 22 * 64])
    expected = (ce[:23].astype(float) * images).sum() / 1437
    assert plain.epochs[0]["train_ce"] == pytest.approx(expected, rel=1e-6)
    assert ce[0] == pytest.approx(math.log(10), rel=0.3)  # L_total would be higher by lam times the sum of (1-r)^2


def test_final_metrics_are_those_of_the_stored_weights(plain, config):
    cfg = config(*DIGITS)
    model = models.build(cfg.model, 10, 1).eval()
    model.load_state_dict(torch.load(plain.path / "last.pt", weights_only=True)["model"])
    _, test = load(cfg.dataset, None)
    x = (torch.from_numpy(test.images).float() - 77.9) / 81.2
    with torch.no_grad():
        logits = model(x)
    wrong = (logits.argmax(1).numpy() != test.labels).mean()
    assert plain.final["test_error"] == pytest.approx(100 * wrong)
    ce = F.cross_entropy(logits, torch.from_numpy(test.labels)).item()
    assert plain.final["test_ce"] == pytest.approx(ce, rel=1e-5)
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    norms = torch.cat([layer.weight.flatten(1).norm(dim=1) for layer in layers])
    assert plain.final["norm_mean"] == pytest.approx(norms.mean().item(), rel=1e-6)
    assert plain.final["norm_max"] == pytest.approx(norms.max().item(), rel=1e-6)
    assert plain.final["penalty"] == pytest.approx(0.01 * (1 - norms).square().sum().item(), rel=1e-5)


def test_filters_turn_by_what_the_optimizer_did_to_them(plain, trained, tmp_path):
    """The last epoch's angle from the weights of two runs, the one an epoch longer, by the dot product in float64."""
    one = trained(tmp_path, "train.epochs=1")
    before, after = (torch.load(record.path / "last.pt")["model"] for record in (one, plain))
    names = [name for name in after if name.endswith(("conv1.weight", "conv2.weight", "fc.weight"))]
    pairs = [(before[name].double().flatten(1), after[name].double().flatten(1)) for name in names]
    expected = [torch.rad2deg(torch.acos(F.cosine_similarity(W, V, dim=1))) for W, V in pairs]
    assert plain.epochs[1]["layer_turns"] == pytest.approx([angle.mean().item() for angle in expected], rel=1e-4)
    assert plain.epochs[1]["turn_mean"] == pytest.approx(torch.cat(expected).mean().item(), rel=1e-4)


def test_a_run_killed_just_before_its_end_is_marked_with_the_same_metrics(plain, trained, tmp_path):
    """After the last checkpoint, before DONE."""
    shutil.copytree(plain.path, tmp_path / plain.id)
    (tmp_path / plain.id / "DONE").unlink()
    again = trained(tmp_path, "train.epochs=2")
    assert (again.final, len(again.epochs)) == (plain.final, 2)


def test_a_run_shows_where_it_is_in_an_epoch_and_each_epoch(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", -1.0)
    trained(tmp_path, "train.epochs=1", "train.max_steps=3", "train.eval_batches=1")
    out = capsys.readouterr().out
    assert [len(re.findall(f"epoch 1/1  ce .*{what}.* images/s", out)) for what in ("  error [0-9]", "test")] == [3, 1]


def test_learning_rate_and_lam_follow_their_schedules(trained, tmp_path):
    record = trained(
        tmp_path, "train.epochs=4", "train.milestones=[2,3]", "train.warmup=6", "train.warmup_lr=0.02",
        "reg.lam_milestones=[1,3]", "reg.lam_values=[0.1,0.01,0]", "train.batch_size=256", "train.eval_batches=1",
    )  # fmt: skip
    assert [epoch["lr"] for epoch in record.epochs] == pytest.approx([0.02, 0.1, 0.01, 0.001])
    assert [epoch["lam"] for epoch in record.epochs] == [0.1, 0.01, 0.01, 0]
    assert record.epochs[-1]["penalty"] == 0


def test_micro_batches_are_slices_and_never_one_image():
    assert micro_batches(130, 64) == [(0, 64), (64, 128), (128, 130)]
    assert micro_batches(129, 64) == [(0, 64), (64, 129)]
    assert micro_batches(130, None) == [(0, 130)]


def test_micro_batches_average_gradients_and_take_the_first_halfs_running_statistics(config):
    """Against two replicas written out: batch norm over each half, gradients averaged, statistics of replica 0."""
    cfg = config("dataset=digits", "model=resnet8", "reg=none", "train.batch_size=16", "train.micro_batch=8").train
    x, y = torch.randn(16, 1, 16, 16), torch.randint(10, (16,))
    ours = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 10))
    replicas = copy.deepcopy(ours), copy.deepcopy(ours)
    reg = regularizers.Regularizer(ours)
    ce, wrong = train_step(ours, reg, torch.optim.SGD(ours.parameters(), lr=0.1), x, y, cfg)

    halves = [(replicas[0], x[:8], y[:8]), (replicas[1], x[8:], y[8:])]
    losses = [F.cross_entropy(replica(xh), yh) for replica, xh, yh in halves]
    (sum(losses) / 2).backward()
    for mine, a, b in zip(ours.parameters(), *(replica.parameters() for replica in replicas), strict=True):
        expected = a.detach() - 0.1 * (a.grad + b.grad)
        torch.testing.assert_close(mine.detach(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours[1].running_mean, replicas[0][1].running_mean)
    torch.testing.assert_close(ours[1].running_var, replicas[0][1].running_var)
    assert ce.item() == pytest.approx(sum(losses).item() / 2, rel=1e-6)
    assert 0 <= wrong.item() <= 16


def test_evaluation_on_few_classes_counts_all_of_them(config):
    cfg = config(*DIGITS)
    train, test = load(cfg.dataset, None)
    few = [type(split)(split.images[split.labels < 3], split.labels[split.labels < 3]) for split in (train, test)]
    data = TensorData(cfg.dataset, *few, seed=0, batch_size=64, device=torch.device("cpu"))
    result = evaluate(models.build(cfg.model, 3, 1), data, cfg, StopRequest())
    assert result["test_error_top5"] == 0
