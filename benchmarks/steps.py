"""A run without its records, on random images: whole steps, data path and all, of train.py's executor."""

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normloss import models, regularizers
from normloss.config import Config, TensorImages
from normloss.data import Data
from normloss.data.tensors import Split, TensorData
from normloss.regularizers import Regularizer
from normloss.sweeps.composing import expand
from normloss.training import device as devices
from normloss.training import executors, optimizer
from normloss.training.graph import WARM_UP

STEPS_PER_EPOCH = 50  # of the random images: an epoch's choices are drawn anew so often
LR = 1e-3  # random images teach nothing, so that no step may diverge


def config(*words: str) -> Config:
    """Return the config of the one run of `python train.py WORDS`."""
    (cfg,) = expand([*words])
    return cfg


def with_executor(cfg: Config, name: str) -> Config:
    return cfg.model_copy(update={"train": cfg.train.model_copy(update={"executor": name})})


class StepLoop:
    """Steps of a config on `device`, built as train.py builds them.

    method: model -> the regularizer, in place of the config's; weight_decay: SGD's own.
    """

    def __init__(
        self,
        cfg: Config,
        device: torch.device,
        data: "Data | NoiseBatches | None" = None,
        method: Callable[[nn.Module], Regularizer] | None = None,
        weight_decay: float = 0.0,
    ) -> None:
        self.cfg, self.device = cfg, device
        self.data = data or random_data(cfg, device)
        self.model = models.build(cfg.model, cfg.dataset.num_classes, cfg.dataset.channels)
        self.model = self.model.to(device).to(memory_format=torch.channels_last).train()
        self.reg = method(self.model) if method else regularizers.build(self.model, cfg.reg)
        self.optimizer = optimizer.build(self.model, cfg.train.model_copy(update={"lr": LR}), device, weight_decay)
        self.executor = executors.build(cfg, self.model, self.reg, self.optimizer, self.data)
        self.batches = (batch for epoch in count() for batch in self.data.train(epoch))

    def steps(self, times: int) -> None:
        """Take so many steps, and wait for the device."""
        for _ in range(times):
            self.executor.step(*next(self.batches))
        devices.synchronize(self.device)

    def warm_up(self) -> None:
        """Take the steps that cost more than later ones: allocations, algorithms, captures."""
        self.steps(WARM_UP + 2 if self.device.type == "cuda" else 1)


class PlainLoop:
    """The step that most repositories have: torch's defaults, weight decay by SGD, a look at each loss."""

    def __init__(self, cfg: Config, device: torch.device, weight_decay: float) -> None:
        self.model = models.build(cfg.model, cfg.dataset.num_classes, cfg.dataset.channels).to(device).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=0.9, weight_decay=weight_decay)

    def step(self, x: Tensor, y: Tensor) -> float:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.item()


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


def random_data(cfg: Config, device: torch.device) -> TensorData | NoiseBatches:
    """Return random bytes in the shape of the config's images, through its data path."""
    if not isinstance(cfg.dataset, TensorImages):
        return NoiseBatches(cfg, device)
    split = random_images(cfg.train.batch_size * STEPS_PER_EPOCH, cfg.dataset)
    return TensorData(cfg.dataset, split, split, cfg.seed, cfg.train.batch_size, device)


def random_images(images: int, cfg: TensorImages) -> Split:
    """Return so many images of random bytes, and random labels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, cfg.channels, cfg.size, cfg.size), np.uint8)
    return Split(pixels, rng.integers(0, cfg.num_classes, images))
