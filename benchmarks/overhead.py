"""The cost of each method: a training step with it against one without, all methods in one process.

`update` is what follows the backward passes: regularizer and optimizer. Figures are medians over interleaved blocks.
"""

from functools import partial
from statistics import median
from typing import Any

from benchmarks.steps import NoiseBatches, StepLoop, config
from benchmarks.timing import interleave
from normloss.config import Config
from normloss.training import device as devices

UPDATES = 5  # a block


class MethodLoop(StepLoop):
    """Steps on one fixed batch, as they are written, and the updates alone."""

    def __init__(self, cfg: Config) -> None:
        device = devices.setup(cfg)
        super().__init__(cfg, device, NoiseBatches(cfg, device))

    def updates(self, times: int) -> None:
        for _ in range(times):
            self.reg.before_step()
            self.optimizer.step()
            self.reg.after_step()
        devices.synchronize(self.device)


def config_of(method: str, model: str = "resnet110", batch: int = 128, device: str = "cpu") -> Config:
    dataset, recipe = ("imagenet", model) if model == "resnet50" else ("cifar10", "resnet110")
    words = [f"dataset={dataset}", f"model={model}", f"recipe={dataset}_{recipe}", f"reg={method}"]
    words += [f"train.batch_size={batch}", "train.executor=eager", f"device={device}", "threads=1"]
    if batch % 64:  # ImageNet's micro-batches
        words.append("train.micro_batch=null")
    return config(*words)


def overhead(configs: dict[str, Config], blocks: int = 5, steps: int = 1) -> list[dict[str, Any]]:
    """Return one row per method, ratios being to the first; `steps` steps a block."""
    loops = {method: MethodLoop(cfg) for method, cfg in configs.items()}
    works = {f"{method} step": partial(loop.steps, steps) for method, loop in loops.items()}
    times = interleave(
        works | {f"{method} update": partial(loop.updates, UPDATES) for method, loop in loops.items()}, blocks
    )
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
