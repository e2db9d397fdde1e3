"""Measures what a method costs: a training step with it against one without, all methods in one process.

python scripts/bench.py overhead [--model resnet110] [--batch 128] [--blocks 5] [--device auto] [--methods nl,wd,...]

Blocks of steps of the methods are interleaved, so that a drift of the machine falls on all alike; figures are medians
over blocks. `update` is what follows the backward passes: regularizer and optimizer. The table is printed, and written
with device and versions to results/bench/overhead_<model>_<device>.json.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

import torch
from hydra import compose, initialize_config_dir

from normloss import device as devices
from normloss import models, provenance, regularizers
from normloss.config import CONFIGS, Config, check
from normloss.step import train_step


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead"])
    parser.add_argument("--model", default="resnet110")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="a block")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--methods", default=",".join(regularizers.REGULARIZERS))
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    options = parser.parse_args(arguments)
    rows = overhead(options)
    print(table(rows))
    save(rows, options)
    return 0


class Contender:
    """A model, a method and an optimizer that train on one fixed batch."""

    def __init__(self, method: str, options: argparse.Namespace) -> None:
        self.cfg = config(method, options)
        self.device = devices.setup(self.cfg)
        self.model = models.build(self.cfg.model, self.cfg.dataset.num_classes, self.cfg.dataset.channels)
        self.model = self.model.to(self.device, memory_format=torch.channels_last).train()
        self.reg = regularizers.build(self.model, self.cfg.reg)
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9, fused=fused)
        size = self.cfg.dataset.size
        self.x = torch.randn(options.batch, self.cfg.dataset.channels, size, size, device=self.device)
        self.x = self.x.contiguous(memory_format=torch.channels_last)
        self.y = torch.randint(self.cfg.dataset.num_classes, (options.batch,), device=self.device)

    def step(self) -> None:
        train_step(self.model, self.reg, self.optimizer, self.x, self.y, self.cfg.train)

    def update(self) -> None:
        self.reg.before_step()
        self.optimizer.step()
        self.reg.after_step()

    def seconds(self, work, times: int) -> float:
        """Of one call, the mean of `times`."""
        self.synchronize()
        began = time.perf_counter()
        for _ in range(times):
            work()
        self.synchronize()
        return (time.perf_counter() - began) / times

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def config(method: str, options: argparse.Namespace) -> Config:
    dataset = "imagenet" if options.model == "resnet50" else "cifar10"
    recipe = "imagenet_resnet50" if dataset == "imagenet" else "cifar10_resnet110"
    overrides = [f"dataset={dataset}", f"model={options.model}", f"recipe={recipe}", f"reg={method}"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return check(compose("config", [*overrides, f"device={options.device}", "threads=1"]))


def overhead(options: argparse.Namespace) -> list[dict]:
    contenders = {method: Contender(method, options) for method in options.methods.split(",")}
    steps = {method: [] for method in contenders}
    updates = {method: [] for method in contenders}
    for contender in contenders.values():  # allocations, algorithm choice
        contender.step()
        contender.update()
    for _ in range(options.blocks):
        for method, contender in contenders.items():
            steps[method].append(contender.seconds(contender.step, options.steps))
            updates[method].append(contender.seconds(contender.update, 5))
    first = next(iter(steps))
    return [
        {
            "method": method,
            "step_ms": 1e3 * median(steps[method]),
            "step_min_ms": 1e3 * min(steps[method]),
            "step_max_ms": 1e3 * max(steps[method]),
            f"ratio_to_{first}": median(a / b for a, b in zip(steps[method], steps[first], strict=True)),
            "update_ms": 1e3 * median(updates[method]),
        }
        for method in contenders
    ]


def table(rows: list[dict]) -> str:
    ratio = next(key for key in rows[0] if key.startswith("ratio_to_"))
    lines = [
        f"| method | ms a step (min-max) | {ratio.replace('_', ' ')} | ms regularizer + SGD |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {row['method']} | {row['step_ms']:.1f} ({row['step_min_ms']:.1f}-{row['step_max_ms']:.1f}) |"
        f" {row[ratio]:.3f} | {row['update_ms']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def save(rows: list[dict], options: argparse.Namespace) -> None:
    device = devices.choose(options.device)
    facts = {**provenance.facts(), **devices.describe(device), "batch": options.batch, "blocks": options.blocks}
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"overhead_{options.model}_{device.type}.json"
    file.write_text(json.dumps({**facts, "model": options.model, "rows": rows}, indent=1) + "\n")
    print(f"written: {file}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
