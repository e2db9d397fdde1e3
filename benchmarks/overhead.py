"""The cost of each method: a training step with it against one without, all methods in one process.

`update` is what follows the backward passes: regularizer and optimizer. Figures are medians over interleaved blocks.
"""

from functools import partial
from statistics import median
from typing import Any

from benchmarks.steps import NoiseBatches, StepLoop, config
from benchmarks.timing import Work, interleave
from normloss.config import Config
from normloss.training import device as devices

UPDATES = 5  # a block


def config_of(method: str, model: str = "resnet110", batch: int = 128, device: str = "cpu") -> Config:
    dataset, recipe = ("imagenet", model) if model == "resnet50" else ("cifar10", "resnet110")
    words = [f"dataset={dataset}", f"model={model}", f"recipe={dataset}_{recipe}", f"reg={method}"]
    words += [f"train.batch_size={batch}", "train.executor=eager", f"device={device}", "threads=1"]
    if batch % 64:  # ImageNet's micro-batches
        words.append("train.micro_batch=null")
    return config(*words)


def updates(loop: StepLoop) -> None:
    for _ in range(UPDATES):
        loop.reg.before_step()
        loop.optimizer.step()
        loop.reg.after_step()
    devices.synchronize(loop.device)


def overhead(configs: dict[str, Config], blocks: int = 5, steps: int = 1) -> list[dict[str, Any]]:
    """Return one row per method, ratios being to the first; `steps` steps on one fixed batch a block."""
    works: dict[str, Work] = {}
    for method, cfg in configs.items():
        device = devices.setup(cfg)
        loop = StepLoop(cfg, device, NoiseBatches(cfg, device))
        works |= {f"{method} step": partial(loop.steps, steps), f"{method} update": partial(updates, loop)}
    times = interleave(works, blocks)
    first, rows = next(iter(configs)), []
    for method in configs:
        step = [1e3 * seconds / steps for seconds in times.seconds[f"{method} step"]]
        rows.append({
            "method": method,
            "step_ms": median(step),
            "step_min_ms": min(step),
            "step_max_ms": max(step),
            f"ratio_to_{first}": times.ratio(f"{method} step", f"{first} step"),
            "update_ms": 1e3 * times.median(f"{method} update") / UPDATES,
        })  # fmt: skip
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    ratio = next(key for key in rows[0] if key.startswith("ratio_to_"))
    lines = [
        f"| method | ms per step (min-max) | {ratio.replace('_', ' ')} | ms regularizer + SGD |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {row['method']} | {row['step_ms']:.1f} ({row['step_min_ms']:.1f}-{row['step_max_ms']:.1f}) |"
        f" {row[ratio]:.3f} | {row['update_ms']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)
