"""How long a training step of a config takes on this device, with a batch of noise in place of data."""

import json
import sys
import time
from statistics import median

import torch

from normloss import device as devices
from normloss import models, regularizers
from normloss.config import Config
from normloss.step import train_step

SECONDS = 5.0  # of measuring, after the steps that pay for allocations and the choice of algorithms


def step_seconds(cfg: Config) -> float:
    """Median seconds of a whole step: forward, backward, regularizer, update."""
    device = devices.setup(cfg)
    model = models.build(cfg.model, cfg.dataset.num_classes, cfg.dataset.channels)
    model = model.to(device, memory_format=torch.channels_last).train()
    reg = regularizers.build(model, cfg.reg)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=device.type in ("cpu", "cuda"))
    x = torch.randn(cfg.train.batch_size, cfg.dataset.channels, cfg.dataset.size, cfg.dataset.size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.randint(cfg.dataset.num_classes, (len(x),), device=device)
    taken = []
    began = time.perf_counter()
    while len(taken) < 3 or time.perf_counter() - began < SECONDS:
        start = time.perf_counter()
        ce, _ = train_step(model, reg, optimizer, x, y, cfg.train)
        ce.item()  # waits for the device
        taken.append(time.perf_counter() - start)
    return median(taken[1:])


def main() -> None:
    """Configs as a JSON list on standard input, seconds of a step of each as a JSON list on standard output."""
    configs = [Config.model_validate(raw) for raw in json.load(sys.stdin)]
    print(json.dumps([step_seconds(cfg) for cfg in configs]))


if __name__ == "__main__":
    main()
