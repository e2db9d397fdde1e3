"""The cost of each method: a training step with it against one without, all methods in one process.

`update` is what follows the backward passes: regularizer and optimizer. Figures are medians over interleaved blocks.
"""

from dataclasses import dataclass
from statistics import median

from benchmarks.steps import NoiseBatches, StepLoop, config
from benchmarks.timing import interleave
from normloss.config import Config
from normloss.training import device as devices

UPDATES = 5  # a block


@dataclass(frozen=True)
class Setting:
    model: str = "resnet110"
    batch: int = 128
    device: str = "auto"


class MethodLoop(StepLoop):
    """Steps on one fixed batch, as they are written, and the updates alone."""

    def __init__(self, method: str, setting: Setting) -> None:
        cfg = config_of(method, setting)
        device = devices.setup(cfg)
        super().__init__(cfg, device, NoiseBatches(cfg, device))

    def updates(self, times: int) -> None:
        for _ in range(times):
            self.reg.before_step()
            self.optimizer.step()
            self.reg.after_step()
        devices.synchronize(self.device)


def config_of(method: str, setting: Setting) -> Config:
    dataset = "imagenet" if setting.model == "resnet50" else "cifar10"
    recipe = "imagenet_resnet50" if dataset == "imagenet" else "cifar10_resnet110"
    words = [f"dataset={dataset}", f"model={setting.model}", f"recipe={recipe}", f"reg={method}"]
    words += [f"train.batch_size={setting.batch}", "train.executor=eager", f"device={setting.device}", "threads=1"]
    if setting.batch % 64:  # ImageNet's micro-batches
        words.append("train.micro_batch=null")
    return config(*words)


def overhead(setting: Setting, methods: list[str], blocks: int = 5, steps: int = 1) -> list[dict]:
    """Return one row per method, ratios being to the first; `steps` steps a block."""
    works = {}
    for method in methods:
        loop = MethodLoop(method, setting)
        works[f"{method} step"] = lambda loop=loop: loop.steps(steps)
        works[f"{method} update"] = lambda loop=loop: loop.updates(UPDATES)
    times = interleave(works, blocks)
    rows = []
    for method in methods:
        step = [1e3 * seconds / steps for seconds in times.seconds[f"{method} step"]]
        rows.append(
            {
                "method": method,
                "step_ms": median(step),
                "step_min_ms": min(step),
                "step_max_ms": max(step),
                f"ratio_to_{methods[0]}": times.ratio(f"{method} step", f"{methods[0]} step"),
                "update_ms": 1e3 * times.median(f"{method} update") / UPDATES,
            }
        )
    return rows


def table(rows: list[dict]) -> str:
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
