"""CUDA without a GPU: torch's fake tensors say that they are on cuda:0, and compute shapes and devices alone.

An operation over two devices raises here, and so does a value read on the host. Left to `make gpu-check`: backward
passes, which want a driver, and with them srip and jac; the fused optimizer; streams, graphs and kernels themselves.
docs/gpus.md lists which test shows each.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._pytree import tree_leaves

from normloss import models, regularizers
from normloss.data import augment
from normloss.training.step import count_batches, running_statistics
from tests.conftest import PRESETS
from tests.data_support import tensor_config, tensor_data

CUDA = torch.device("cuda:0")
AUTOGRAD = {"jac", "srip", "srip_paper"}  # their gradient is a backward pass
METHODS = sorted({*PRESETS} - AUTOGRAD)
ON_HOST = {"srip_converged"}  # its gradient is an eigendecomposition that the host checks
DIGITS = ("dataset=digits", "model=resnet8")


@pytest.fixture(autouse=True)
def no_driver(monkeypatch):
    """What is asked of CUDA itself: whether a graph is being captured. NormLoss takes another form then."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


@pytest.fixture
def fake():
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def on_cuda(cfg):
    with torch.device(CUDA):
        return models.build(cfg.model, cfg.dataset.num_classes, cfg.dataset.channels)


def all_on_cuda(*tensors) -> bool:
    return all(tensor.device == CUDA for tensor in tensors)


@pytest.mark.parametrize("name", ["resnet20", "wrn16_4", "resnet18", "resnet50"])
def test_a_model_computes_on_its_device(config, fake, name):
    imagenet = name in ("resnet18", "resnet50")
    words = ["dataset=imagenet", "recipe=imagenet_resnet50"] if imagenet else ["recipe=cifar10_resnet110"]
    cfg = config(*words, f"model={name}")
    x = torch.randn(4, 3, cfg.dataset.size, cfg.dataset.size, device=CUDA).to(memory_format=torch.channels_last)
    model = on_cuda(cfg)
    with running_statistics(model, update=True):
        logits = model(x)
    count_batches(model, 1)
    assert logits.shape == (4, cfg.dataset.num_classes)
    assert all_on_cuda(logits, *model.state_dict().values())


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # NormLoss asks where its stack is
@pytest.mark.parametrize(("preset", "captured"), [(preset, preset == "nl") for preset in METHODS] + [("nl", False)])
def test_a_methods_step_stays_on_its_device(config, monkeypatch, preset, captured):
    """Every moment of a step on given gradients. wn alone looks at values, once, for rows of zeros: it finds none."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captured)
    cfg = config(*DIGITS, f"reg={preset}")
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = on_cuda(cfg)
        monkeypatch.setattr(torch.Tensor, "nonzero", lambda self: torch.empty(0, self.ndim, dtype=torch.int64))
        reg = regularizers.build(model, cfg.reg)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=True)
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            if preset in ON_HOST:
                with pytest.raises(DataDependentOutputException):
                    reg.before_step()
                return
            reg.before_step()
            optimizer.step()
            reg.after_step(optimizer)
        reg.after_epoch()
        with torch.no_grad():
            value = reg.value()
        gradients = [parameter.grad for parameter in model.parameters()]
        momenta = [optimizer.state[parameter]["momentum_buffer"] for parameter in model.parameters()]
        assert all_on_cuda(*model.state_dict().values(), *gradients, *momenta)
        assert isinstance(value, float) or value.device == CUDA
        state = [leaf for leaf in tree_leaves(reg.state_dict()) if isinstance(leaf, torch.Tensor)]
        assert all_on_cuda(*(tensor for tensor in state if tensor.dtype != torch.uint8))  # of a generator, on the host


def test_batches_are_made_on_the_device(fake):
    data = tensor_data(tensor_config(flip=0.5), images=70, batch_size=32, test_images=30, device=CUDA)
    train = list(data.train(0))
    assert [len(x) for x, _ in train] == [32, 32, 6]
    for x, y in (*train, *data.in_order("test"), *data.in_order("train")):
        assert all_on_cuda(x, y)
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)


def test_photographs_are_augmented_on_the_device(fake):
    x, g, share = torch.rand(4, 3, 8, 8, device=CUDA), torch.Generator().manual_seed(0), (4, slice(None))
    x = augment.random_flip(augment.lighting(augment.color_jitter(x, 0.4, g, share), 0.1, g, share), 0.5, g, share)
    assert x.device == CUDA
    assert x.shape == (4, 3, 8, 8)
