"""A batch, and a training step on it, never make the host wait for the device."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from normloss import models, regularizers
from normloss.data import augment
from normloss.data.order import generator
from normloss.data.tensors import Split, TensorData
from normloss.training.step import train_step
from tests.data_support import CPU, pixels, tensor_config, tensor_data

META = torch.device("meta")
WAITING = {"_local_scalar_dense", "nonzero", "item", "masked_select", "unique_consecutive", "_unique2", "equal"}


class Waits(TorchDispatchMode):
    """Counts the operations whose result the host must see before it can go on."""

    def __init__(self):
        super().__init__()
        self.found, self.operations = Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else []
        boolean = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
        if name in WAITING or boolean:
            self.found[name] += 1
        self.operations += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("wait", [
    lambda x: x[0].item(), lambda x: x[x > 1], lambda x: (x > 1).nonzero(), lambda x: bool((x > 1).any()),
    lambda x: x.__setitem__(x > 1, torch.tensor([5, 6])), lambda x: x.masked_select(x > 1),
    lambda x: torch.where(x > 1),
])  # fmt: skip
def test_the_count_sees_what_waits(wait):
    with Waits() as waits:
        wait(torch.arange(4))
    assert waits.found.total() == 1


def test_the_count_lets_integer_indices_pass():
    with Waits() as waits:
        torch.arange(4)[torch.tensor([0, 2])]
    assert not waits.found and waits.operations > 0


@pytest.mark.parametrize("padding", ["zero", "reflect"])
def test_batches_of_a_tensor_wait_for_nothing(padding):
    data = tensor_data(tensor_config(padding=padding))
    with Waits() as waits:
        batches = list(data.train(0)) + list(data.test())
    assert len(batches) == 4 and waits.operations > 20 and not waits.found


def test_batches_are_made_on_a_device_that_holds_no_values():
    """There every look at a value raises."""
    images = Split(pixels(11, 3, 6, 6), np.arange(11))
    data = TensorData(tensor_config(), images, images, 0, 4, META)
    assert [x.shape for x, _ in data.train(0)] == [(4, 3, 6, 6), (4, 3, 6, 6), (3, 3, 6, 6)]
    assert all(x.device == META and y.device == META for x, y in data.train(1))


def test_colour_and_flip_wait_for_nothing():
    x, g = torch.rand(4, 3, 6, 6), generator(0)
    for device in (CPU, META):
        with Waits() as waits:
            out = augment.random_flip(augment.lighting(augment.color_jitter(x.to(device), 0.4, g), 0.1, g), 0.5, g)
        assert out.shape == x.shape and out.device == device
        assert waits.operations > 10 and not waits.found


@pytest.mark.parametrize("reg", ["wd", "nl"])
def test_a_training_step_waits_for_nothing(config, reg):
    cfg = config("dataset=digits", "model=resnet8", f"reg={reg}")
    images = Split(pixels(64, 1, 16, 16), np.arange(64) % 10)
    data = TensorData(cfg.dataset, images, images, 0, 32, CPU)
    model = models.build(cfg.model, 10, 1).to(memory_format=torch.channels_last)
    method = regularizers.build(model, cfg.reg)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    train_step(model, method, optimizer, *next(data.train(0)), cfg.train)  # makes the momentum
    with Waits() as waits:
        for x, y in data.train(1):
            train_step(model, method, optimizer, x, y, cfg.train)
    assert waits.operations > 100 and not waits.found
