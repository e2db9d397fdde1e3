"""Parameter counts typed from the papers and design notes, shapes, shortcuts, initialisation."""

import pytest
import torch
from torch import nn

from normloss import models

COUNTS = {
    ("resnet20", "cifar10"): 269_722,
    ("resnet56", "cifar10"): 853_018,
    ("resnet110", "cifar10"): 1_727_962,
    ("resnet110", "cifar100"): 1_733_812,
    ("wrn16_4", "cifar10"): 2_748_890,
    ("wrn28_10", "cifar10"): 36_479_194,
    ("wrn28_10", "cifar100"): 36_536_884,
    ("resnet50", "imagenet"): 25_557_032,
    ("resnet18", "imagenet"): 11_689_512,
}


def network(config, model: str, dataset: str, *overrides: str) -> nn.Module:
    cfg = config(f"dataset={dataset}", f"model={model}", "recipe=cifar10_resnet110", *overrides)
    torch.manual_seed(0)
    return models.build(cfg.model, cfg.dataset.num_classes, cfg.dataset.channels)


@pytest.mark.parametrize(("model", "dataset"), COUNTS)
def test_parameter_counts(config, model, dataset):
    assert sum(p.numel() for p in network(config, model, dataset).parameters()) == COUNTS[model, dataset]


def test_option_a_shortcut_takes_every_second_pixel_and_adds_zeros():
    block = models.ResNetCifar(8, 10).stage2[0]
    x = torch.randn(2, 16, 6, 6)
    out = block.shortcut(x)
    assert torch.equal(out[:, :16], x[:, :, ::2, ::2])
    assert out.shape == (2, 32, 3, 3)
    assert out[:, 16:].eq(0).all()


@pytest.mark.parametrize(("model", "fan"), [("resnet20", "out"), ("wrn16_4", "in")])
def test_convolutions_are_drawn_with_hes_variance(config, model, fan):
    conv = network(config, model, "cifar10").stage3[0].conv1
    channels = conv.out_channels if fan == "out" else conv.in_channels
    assert conv.weight.std().item() == pytest.approx((2 / (9 * channels)) ** 0.5, rel=0.02)


def test_batch_norm_and_head_start_as_stated(config):
    model = network(config, "resnet50", "imagenet")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.weight.eq(1).all() and m.bias.eq(0).all() and m.eps == 1e-5 and m.momentum == 0.1 for m in norms)
    assert model.fc.bias.eq(0).all()
    assert model.fc.weight.abs().max().item() == pytest.approx(2048**-0.5, rel=1e-3)
    uniform = network(config, "wrn16_4", "cifar10", "model.gamma_init=uniform")
    assert 0 < uniform.bn.weight.min() < 0.1
    assert 0.9 < uniform.bn.weight.max() < 1


def test_wide_blocks_drop_out_between_their_convolutions_in_training_only(config):
    model = network(config, "wrn16_4", "cifar10", "model.dropout=0.3")
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model.train()(x), model.train()(x))
    assert torch.equal(model.eval()(x), model.eval()(x))
