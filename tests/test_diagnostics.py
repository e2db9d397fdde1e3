"""Layer diagnostics against numpy, and the command that prints them."""

import argparse
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from normloss.cli.inspect import main
from normloss.diagnostics import diagnostics
from tests.test_archive import run_with_weights


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
        expected = norms.mean(), norms.min(), norms.max()
        assert (layer.norm_mean, layer.norm_min, layer.norm_max) == pytest.approx(expected)
        assert layer.sigma_max == pytest.approx(sigma[0], rel=1e-5)
        assert layer.gram_residual == pytest.approx(np.sqrt(((sigma**2 - 1) ** 2).mean()), rel=1e-4)


def test_the_command_prints_the_table_of_a_run_with_the_weights_that_it_applies(config, tmp_path, capsys):
    path, *_, norms = run_with_weights(config("dataset=digits", "model=resnet8", "reg=oni", f"store={tmp_path}"))
    assert main([str(path / "last.pt")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "n", "p", "norm", "mean", "min", "max", "gram", "sigma"]
    assert [float(line.split()[3]) for line in lines[1:]] == pytest.approx(norms["layer_norms"], abs=1e-4)


def shown(capsys, *arguments: str) -> dict[str, list[float]]:
    """layer -> n, p and the numbers of its line."""
    assert main([str(argument) for argument in arguments]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    return {line.split()[0]: [float(word) for word in line.split()[1:]] for line in lines}


class Hyperparameters:
    def __init__(self) -> None:
        self.lr = 0.1


def checkpoints(state: dict) -> dict[str, dict]:
    options = argparse.Namespace(lr=0.1, extra=Hyperparameters())
    optimizer = torch.optim.AdamW([torch.nn.Parameter(value.float()) for value in state.values()]).state_dict()
    return {
        "state dict": state,
        "timm's": {"epoch": 3, "arch": "resnet18", "state_dict": state, "optimizer": optimizer, "args": options},
        "Lightning's": {"state_dict": state, "optimizer_states": [optimizer], "hyper_parameters": options, "loops": {}},
        "a trainer's": {"model": state, "optimizer": optimizer, "step": 7},
        "another's": {"step": 7, "weights": {"network": state}, "optimizer": optimizer},
    }


@pytest.mark.parametrize("kind", [*checkpoints({"a": torch.zeros(1)}), "safetensors"])
def test_inspect_shows_the_weights_of_any_checkpoint(kind, tmp_path, capsys):
    model = network()
    file = tmp_path / "model.pt"
    if kind == "safetensors":
        file = file.with_suffix(".safetensors")
        pytest.importorskip("safetensors.torch").save_file(model.state_dict(), file)
    else:
        torch.save(checkpoints(model.state_dict())[kind], file)
    found = shown(capsys, file)
    assert list(found) == ["0", "2", "4"]
    for layer in diagnostics(model):
        n, p, mean, smallest, largest, residual, sigma = found[layer.name]
        assert (n, p) == (layer.n, layer.p)
        assert (mean, smallest, largest) == pytest.approx((layer.norm_mean, layer.norm_min, layer.norm_max), abs=1e-4)
        assert (residual, sigma) == pytest.approx((layer.gram_residual, layer.sigma_max), abs=1e-4)


def test_inspect_runs_nothing_of_a_checkpoint(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    torch.save({"state_dict": network().state_dict(), "extra": Evil()}, tmp_path / "model.pt")
    assert list(shown(capsys, tmp_path / "model.pt")) == ["0", "2", "4"]
    assert not (tmp_path / "made").exists()


def test_inspect_knows_attention_recurrent_transposed_and_weight_normalized_layers(tmp_path, capsys):
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "lstm": nn.LSTM(3, 4)})
    model["up"] = nn.ConvTranspose2d(4, 6, 3)
    model["normed"] = nn.utils.parametrizations.weight_norm(nn.Linear(3, 5))
    model["bf16"] = nn.Linear(3, 2, dtype=torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model["older"] = nn.utils.weight_norm(nn.Linear(3, 5))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    found = shown(capsys, tmp_path / "model.pt")
    assert {name: tuple(numbers[:2]) for name, numbers in found.items()} == {
        "attention.in_proj_weight": (24, 8), "attention.out_proj": (8, 8), "lstm.weight_ih_l0": (16, 3),
        "lstm.weight_hh_l0": (16, 4), "up": (6, 36), "normed": (5, 3), "bf16": (2, 3), "older": (5, 3),
    }  # fmt: skip
    for name in ("normed", "older"):
        assert found[name][2] == pytest.approx(model[name].weight.norm(dim=1).mean().item(), abs=1e-4)


def test_inspect_draws_the_norms(tmp_path, capsys):
    torch.save(network().state_dict(), tmp_path / "model.pt")
    shown(capsys, tmp_path / "model.pt", "--plot", tmp_path / "norms.png")
    assert (tmp_path / "norms.png").read_bytes().startswith(b"\x89PNG")
    assert main([str(tmp_path / "model.pt"), "--plot", str(tmp_path / "no" / "norms.png")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_inspect_says_which_package_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert main([f"{tmp_path}/model.safetensors"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith("model.safetensors: needs the package safetensors: pip install 'normloss[suite]'")


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"not a checkpoint", "must be a checkpoint of torch or .safetensors"),
        ([1, 2], "must hold a state dict, got list"),
        ({"0.bias": torch.zeros(3)}, "holds no weight of two axes or more"),
    ],
    ids=["no file", "bytes", "list", "a bias"],
)
def test_inspect_refuses_what_holds_no_weights_in_one_line(contents, words, tmp_path, capsys):
    file = tmp_path / "model.pt"
    if isinstance(contents, bytes):
        file.write_bytes(contents)
    elif contents is not None:
        torch.save(contents, file)
    assert main([str(file)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"normloss: {file}: ") and words in said
