"""Layer diagnostics against numpy, and the command that prints them."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import normloss
import train as script
from normloss.cli.inspect import main
from normloss.diagnostics import diagnostics, summary
from normloss.runs import records, store
from tests.conftest import ROOT


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 60, 1), nn.Flatten(), nn.Linear(60, 4))


def test_each_layer_has_the_norms_gram_residual_and_singular_value_of_numpy():
    model = network()
    layers = diagnostics(model)
    assert [(layer.name, layer.n, layer.p) for layer in layers] == [("0", 5, 27), ("2", 60, 5), ("4", 4, 60)]
    for layer, module in zip(layers, (model[0], model[2], model[4]), strict=True):
        W = module.weight.detach().double().flatten(1).numpy()
        norms, sigma = np.linalg.norm(W, axis=1), np.linalg.svd(W, compute_uv=False)
        assert (layer.norm_mean, layer.norm_min, layer.norm_max) == pytest.approx(
            (norms.mean(), norms.min(), norms.max())
        )
        assert layer.sigma_max == pytest.approx(sigma[0], rel=1e-5)
        assert layer.gram_residual == pytest.approx(np.sqrt(((sigma**2 - 1) ** 2).mean()), rel=1e-4)


def test_orthonormal_filters_have_no_residual_and_singular_values_of_one():
    model = network()
    normloss.Stiefel(model, layers="conv")
    for layer in diagnostics(model)[:2]:
        assert layer.gram_residual == pytest.approx(0, abs=1e-5)
        assert layer.sigma_max == pytest.approx(1, abs=1e-5)


def test_reparametrized_layers_show_the_weight_that_is_applied():
    model = network()
    normloss.WeightNorm(model, layers="conv", scale=2.0)
    assert [layer.norm_mean for layer in diagnostics(model)[:2]] == pytest.approx([2, 2])


def test_summary_is_over_all_filters():
    layers = diagnostics(network())
    total = summary(layers)
    assert total["norm_mean"] == pytest.approx(sum(layer.n * layer.norm_mean for layer in layers) / (5 + 60 + 4))
    assert total["norm_max"] == max(layer.norm_max for layer in layers)
    assert len(total["layer_norms"]) == 3


@pytest.mark.parametrize("reg", ["nl", "oni"])
def test_the_command_prints_a_runs_table(config, tmp_path, capsys, reg):
    cfg = config("dataset=digits", "model=resnet8", f"reg={reg}", "train.max_steps=2", "wandb.mode=disabled",
                 "threads=1", "device=cpu", f"store={tmp_path}")  # fmt: skip
    script.train(cfg, store.open_run(cfg))
    capsys.readouterr()
    assert main([str(tmp_path / cfg.id / "last.pt")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "n", "p", "norm", "mean", "min", "max", "gram", "sigma"]
    assert len(lines) == 1 + 8  # seven convolutions and the head
    final = records.load_run(tmp_path / cfg.id).final
    assert float(lines[1].split()[3]) == pytest.approx(final["layer_norms"][0], abs=1e-4)


def test_the_command_refuses_what_is_no_checkpoint_in_one_line(tmp_path):
    asked = subprocess.run(
        [sys.executable, "-m", "normloss.diagnostics", str(tmp_path / "last.pt")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert asked.returncode == 2
    assert asked.stderr.startswith(f"normloss: {tmp_path}/last.pt: must be the last.pt of a run's folder")
    assert len(asked.stderr.splitlines()) == 1
