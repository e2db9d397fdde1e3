"""An epoch of ResNet20 on a CPU core, data path and all: ours against a plain training loop.

The epoch is short, 3 batches of 128 random images: a step costs the same whatever the images and wherever in an epoch.
"""

import time

import torch
import torch.nn.functional as F
import torchvision.transforms as T
from hydra import compose, initialize_config_dir
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.data import random_images
from benchmarks.timing import Measurement, interleave
from normloss import models, regularizers
from normloss.config import CONFIGS, Config, TensorImages, check
from normloss.data.tensors import Split, TensorData
from normloss.training.step import train_step

STEPS = 3
LR = 1e-3  # of both: random images teach nothing, so that no step may diverge
OVERRIDES = ["dataset=cifar10", "model=resnet20", "recipe=cifar10_resnet110", "reg=wd", "device=cpu"]


def measure(blocks: int = 5) -> list[Measurement]:
    """An epoch of 3 steps a block, on one thread; CPU seconds."""
    torch.set_num_threads(1)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = check(compose("config", OVERRIDES))
    images = random_images(STEPS * cfg.train.batch_size)
    works = {"ours": Ours(cfg, images).epoch, "plain": Plain(cfg, images).epoch}
    times = interleave(works, blocks, time.process_time)
    return [
        Measurement("ResNet20 epoch, speed against a plain loop", times.ratio("plain", to="ours"), "x", at_least=1.1),
        Measurement("ResNet20 step of ours", 1000 * times.median("ours") / STEPS, "ms"),
        Measurement("ResNet20 step of a plain loop", 1000 * times.median("plain") / STEPS, "ms"),
    ]


class Ours:
    """As train.py does it: images on the device, channels last, fused SGD, nothing read from the device."""

    def __init__(self, cfg: Config, images: Split) -> None:
        assert isinstance(cfg.dataset, TensorImages)
        self.cfg = cfg
        self.data = TensorData(cfg.dataset, images, images, cfg.seed, cfg.train.batch_size, torch.device("cpu"))
        self.model = models.build(cfg.model, cfg.dataset.num_classes, cfg.dataset.channels)
        self.model = self.model.to(memory_format=torch.channels_last).train()
        self.reg = regularizers.build(self.model, cfg.reg)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=cfg.train.momentum, fused=True)

    def epoch(self) -> float:
        """The mean cross entropy."""
        ces = []
        for x, y in self.data.train(0):
            ce, _ = train_step(self.model, self.reg, self.optimizer, x, y, self.cfg.train)
            ces.append(ce)
        return float(torch.stack(ces).mean())


class Plain:
    """The loop that most repositories have: PIL images through a DataLoader, torch's defaults, a look at each loss.

    It loads in the training process: so this process's CPU seconds hold all of its work, and none is done twice.
    """

    def __init__(self, cfg: Config, images: Split) -> None:
        self.loader = DataLoader(PilImages(cfg, images), batch_size=cfg.train.batch_size, shuffle=True)
        self.model = models.build(cfg.model, cfg.dataset.num_classes, cfg.dataset.channels).train()
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=LR, momentum=cfg.train.momentum, weight_decay=cfg.reg.lam
        )

    def epoch(self) -> float:
        """The mean cross entropy."""
        total, correct, images = 0.0, 0, 0
        for x, y in self.loader:
            self.optimizer.zero_grad()
            logits = self.model(x)
            loss = F.cross_entropy(logits, y)
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(x)
            correct += (logits.argmax(1) == y).sum().item()
            images += len(x)
        return total / images


class PilImages(Dataset):
    """What torchvision.datasets.CIFAR10 gives, with the usual transforms."""

    def __init__(self, cfg: Config, images: Split) -> None:
        assert isinstance(cfg.dataset, TensorImages)
        self.images, self.labels = images.images.transpose(0, 2, 3, 1), images.labels  # (N, 32, 32, 3)
        self.transform = T.Compose([
            T.RandomCrop(cfg.dataset.size, padding=cfg.dataset.pad),
            T.RandomHorizontalFlip(cfg.dataset.flip),
            T.ToTensor(),
            T.Normalize([mean / 255 for mean in cfg.dataset.mean], [std / 255 for std in cfg.dataset.std]),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), int(self.labels[i])
