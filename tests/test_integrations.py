"""The hook in training loops that are not ours, a plain one and PyTorch Lightning's; and a sweeper that is not ours."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import normloss

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
METHODS = {
    "NormLoss": lambda model: normloss.NormLoss(model, lam=0.05),
    "WeightNorm": normloss.WeightNorm,
    "PBWN": normloss.PBWN,
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def network() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=5)


def images() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(16, 3, 16, 16, generator=generator), torch.randint(5, (16,), generator=generator)
    )  # two batches


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def explicit(method) -> nn.Module:
    model = network()
    reg = method(model)
    optimizer = sgd(model)
    for x, y in DataLoader(images(), batch_size=8):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        reg.before_step()
        optimizer.step()
        reg.after_step()
    return model


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


@every_method
def test_a_plain_loop_needs_one_line(method):
    model = network()
    reg = method(model)
    optimizer = sgd(model)
    reg.hook(optimizer)
    for x, y in DataLoader(images(), batch_size=8):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert_equal(model, explicit(method))


@pytest.fixture(scope="module")
def lightning():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning.pytorch

        return lightning.pytorch


def fit(lightning, method, tmp_path, **options) -> nn.Module:
    """Two steps of lightning.Trainer on a module whose regularizer is built in __init__, as one would write it."""

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = network()
            self.reg = method(self.model)

        def training_step(self, batch, batch_idx):
            x, y = batch
            return F.cross_entropy(self.model(x), y)

        def configure_optimizers(self):
            optimizer = sgd(self)
            self.reg.hook(optimizer)
            return optimizer

    module = Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            **options,
        )
        trainer.fit(module, DataLoader(images(), batch_size=8))
    assert trainer.global_step == 2
    return module.model


@every_method
def test_lightnings_automatic_optimization_trains_as_the_explicit_loop(lightning, method, tmp_path):
    assert_equal(fit(lightning, method, tmp_path), explicit(method))


def test_lightnings_gradient_clipping_clips_the_task_and_not_the_penalty(lightning, tmp_path):
    """Clipped to nothing, the gradient is the norm loss's alone."""
    model = fit(lightning, METHODS["NormLoss"], tmp_path, gradient_clip_val=1e-12)
    expected = network()
    reg, optimizer = normloss.NormLoss(expected, lam=0.05), sgd(expected)
    for _ in range(2):
        for parameter in expected.parameters():
            parameter.grad = torch.zeros_like(parameter)
        reg.before_step()
        optimizer.step()
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("method", [METHODS["WeightNorm"]])
def test_a_reparametrization_built_after_lightning_made_the_optimizer_is_refused(lightning, method, tmp_path):
    class Late(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = network()

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return sgd(self)

        def on_train_start(self) -> None:
            method(self.model)

    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="build it before the optimizer; SGD holds the weight of layer 'conv1'"):
            trainer.fit(Late(), DataLoader(images(), batch_size=8))


def test_optuna_drives_train_by_ask_and_tell(tmp_path):
    words = ["dataset=digits", "model=resnet8", "reg=nl", "train.max_steps=2", "train.eval_batches=1", "device=cpu"]
    command = [sys.executable, ROOT / "examples" / "optuna_search.py", "2", *words, "threads=1", "wandb.mode=disabled"]
    ran = subprocess.run([*command, f"store={tmp_path}"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    errors = [json.loads(file.read_text())["test_error"] for file in tmp_path.glob("*/DONE")]
    assert len(errors) == 2
    assert ran.stdout.splitlines()[-1].endswith(f"with an error of {min(errors):.2f} %")
