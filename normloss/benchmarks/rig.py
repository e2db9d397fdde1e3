"""A run without its records: model, method, optimizer and executor of a config, on random images, step after step."""

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import torch
from torch import Tensor, nn

from normloss import models, regularizers
from normloss.config import Config, TensorImages
from normloss.data.tensors import Split, TensorData
from normloss.regularizers import Regularizer
from normloss.training import executors
from normloss.training.device import synchronize

STEPS_PER_EPOCH = 50  # of the random images: an epoch's choices are drawn anew so often
LR = 1e-3  # random images teach nothing, so that no step may diverge


class Rig:
    """What train.py makes of a config on `device`; next(rig.work) takes a step.

    method: model -> the regularizer, in place of the config's; weight_decay: SGD's own.
    """

    def __init__(
        self,
        cfg: Config,
        device: torch.device,
        data: "TensorData | NoiseBatches | None" = None,
        method: Callable[[nn.Module], Regularizer] | None = None,
        weight_decay: float = 0.0,
    ) -> None:
        self.device = device
        self.data = data or random_data(cfg, device)
        self.model = models.build(cfg.model, cfg.dataset.num_classes, cfg.dataset.channels)
        self.model = self.model.to(device, memory_format=torch.channels_last).train()
        self.reg = method(self.model) if method else regularizers.build(self.model, cfg.reg)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=LR,
            momentum=cfg.train.momentum,
            nesterov=cfg.train.nesterov,
            weight_decay=weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )
        self.executor = executors.build(cfg, self.model, self.reg, self.optimizer, self.data)
        self.work = self._steps()

    def steps(self, times: int) -> None:
        """So many steps, and wait for the device."""
        for _ in range(times):
            next(self.work)
        synchronize(self.device)

    def _steps(self) -> Iterator[None]:
        for epoch in count():
            for x, y in self.data.train(epoch):
                self.executor.step(x, y)
                yield


class NoiseBatches:
    """One batch of noise, over and over, where the images of a data set do not stay on the device."""

    def __init__(self, cfg: Config, device: torch.device) -> None:
        self.device = device
        images, size = cfg.dataset, cfg.dataset.size
        x = torch.randn(cfg.train.batch_size, images.channels, size, size, device=device)
        self.x = x.contiguous(memory_format=torch.channels_last)
        self.y = torch.randint(images.num_classes, (len(x),), device=device)

    def train(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.x, self.y


class OneBatch(TensorData):
    """The first batch of a data set, over and over: steps without a data path."""

    def __init__(self, data: TensorData) -> None:
        self.device, self.batch = data.device, next(data.train(0))

    def train(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.batch


def random_data(cfg: Config, device: torch.device) -> TensorData | NoiseBatches:
    """Random bytes in the shape of the config's images, through the data path that it has."""
    if not isinstance(cfg.dataset, TensorImages):
        return NoiseBatches(cfg, device)
    split = random_images(cfg.train.batch_size * STEPS_PER_EPOCH, cfg.dataset)
    return TensorData(cfg.dataset, split, split, cfg.seed, cfg.train.batch_size, device)


def random_images(images: int, cfg: TensorImages) -> Split:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, cfg.channels, cfg.size, cfg.size), np.uint8)
    return Split(pixels, rng.integers(0, cfg.num_classes, images))
