"""A CUDA device: what norm loss adds to a step, and images/s of the paper's networks.

Steps are whole, data path and all, of the executor that train.py chooses; nothing waits for the device within a block.
"""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from normloss import NormLoss, Regularizer, models
from normloss.benchmarks.rig import NoiseBatches, OneBatch, Rig, random_data
from normloss.benchmarks.timing import Bar, Times, interleave
from normloss.config import CONFIGS, Config, check
from normloss.training import device as devices
from normloss.training.executors import WARM_UP

STEPS = 50  # a block
LAM = {"wd": 1e-4, "nl": 1e-2}


@dataclass(frozen=True)
class Net:
    """A network at the paper's batch size, how it is best run, and what it has to reach in images/s."""

    name: str
    overrides: tuple[str, ...]
    images: float
    plain: float | None = None  # times as fast as the plain loop


RESNET110 = Net("ResNet110", ("dataset=cifar10", "model=resnet110"), images=25_000)
WRN = Net("WRN-28-10, bf16", ("dataset=cifar10", "model=wrn28_10", "train.precision=bf16"), images=11_000, plain=2.5)
RESNET50 = Net(
    "ResNet-50, bf16", ("dataset=imagenet", "model=resnet50", "train.precision=bf16", "train.batch_size=128"), 3_500
)


def measure(
    blocks: int = 5,
    device: torch.device | None = None,
    nets: tuple[Net, ...] = (RESNET110, WRN, RESNET50),
    steps: int = STEPS,
) -> list[Bar]:
    """The bars of one device: `steps` steps a block, seconds by the clock on the wall, all of the device's work in."""
    device = device or torch.device("cuda", torch.cuda.current_device())
    bars: list[Bar] = []
    for net in nets:
        bars += step_bars(net, device, blocks, steps)
        gc.collect()  # a graph that goes during another's capture ends it
    for part in (executor_bars, data_bars):
        bars += part(nets[0], device, blocks, steps)
        gc.collect()
    return bars


def config(net: Net, *overrides: str) -> Config:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return check(compose("config", [*net.overrides, *overrides]))


# norm loss against weight decay ----------------------------------------------------------------------


class AutogradNormLoss(Regularizer):
    """The penalty as the paper writes it, in the loss: what most implementations do."""

    def __init__(self, model: nn.Module, *, lam: float) -> None:
        super().__init__(model, lam=lam)
        self.weights = NormLoss(model, lam=lam).weights

    def loss(self, x: Tensor, logits: Tensor) -> Tensor:
        return self.lam * sum((1 - weight.flatten(1).norm(dim=1)).square().sum() for weight in self.weights)


def step_bars(net: Net, device: torch.device, blocks: int, steps: int) -> list[Bar]:
    """A step with norm loss against torch's fused SGD(weight_decay); images/s; a plain loop."""
    cfg = config(net, "reg=nl")
    devices.setup(cfg.model_copy(update={"device": str(device)}))
    data = random_data(cfg, device)
    rigs = {
        "wd": Rig(cfg, device, data, Regularizer, weight_decay=LAM["wd"]),
        "nl": Rig(cfg, device, data, lambda model: NormLoss(model, lam=LAM["nl"])),
        "autograd": Rig(cfg, device, data, lambda model: AutogradNormLoss(model, lam=LAM["nl"])),
    }
    works = {name: in_blocks(rig, steps) for name, rig in rigs.items()} | {"plain": Plain(cfg, device).block(steps)}
    for rig in rigs.values():
        rig.steps(WARM_UP + 1)
    times = interleave(works, blocks)
    images = cfg.train.batch_size * steps
    speed, executor = times.ratio("plain", to="nl"), rigs["nl"].executor.name
    return [
        Bar(f"{net.name}: step, nl / wd", times.ratio("nl", "wd"), "x", at_most=1.01),
        Bar(f"{net.name}: step, nl by an autograd penalty / wd", times.ratio("autograd", "wd"), "x"),
        Bar(f"{net.name}: nl, {executor}", images / times.median("nl"), "images/s", at_least=net.images),
        Bar(f"{net.name}: nl, speed against a plain loop with wd", speed, "x", at_least=net.plain),
        Bar(f"{net.name}: step, wd", milliseconds(times, "wd", steps), "ms"),
    ]


def milliseconds(times: Times, name: str, steps: int) -> float:
    return 1e3 * times.median(name) / steps


def in_blocks(rig: Rig, steps: int) -> Callable[[], None]:
    return lambda: rig.steps(steps)


class Plain:
    """The loop that most repositories have, its batch ready on the device: torch's defaults, a look at each loss."""

    def __init__(self, cfg: Config, device: torch.device) -> None:
        self.model = models.build(cfg.model, cfg.dataset.num_classes, cfg.dataset.channels).to(device).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9, weight_decay=LAM["wd"])
        batch = NoiseBatches(cfg, device)
        self.x, self.y = batch.x.contiguous(), batch.y

    def block(self, steps: int) -> Callable[[], None]:
        def work() -> None:
            with tf32_convolutions():
                for _ in range(steps):
                    self.step()

        return work

    def step(self) -> float:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        self.optimizer.step()
        return loss.item()


@contextmanager
def tf32_convolutions() -> Iterator[None]:
    """torch's default; a run of ours in fp32 computes in float32."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


# executors, data --------------------------------------------------------------------------------


def executor_bars(net: Net, device: torch.device, blocks: int, steps: int) -> list[Bar]:
    """A graph against the eager step, and what a new learning rate costs: a graph is then captured anew."""
    cfgs = {name: config(net, "reg=nl", f"train.executor={name}") for name in ("graph", "eager")}
    data = random_data(cfgs["graph"], device)
    rigs = {name: Rig(cfg, device, data) for name, cfg in cfgs.items()}
    for rig in rigs.values():
        rig.steps(WARM_UP + 1)
    times = interleave({name: in_blocks(rig, steps) for name, rig in rigs.items()}, blocks)
    began = time.perf_counter()
    rigs["graph"].optimizer.param_groups[0]["lr"] /= 10
    rigs["graph"].steps(WARM_UP + 1)
    captured = time.perf_counter() - began
    return [
        Bar(f"{net.name}: graph, speed against eager", times.ratio("eager", to="graph"), "x", at_least=3),
        Bar(f"{net.name}: step, eager", milliseconds(times, "eager", steps), "ms"),
        Bar(f"{net.name}: a new learning rate, warm-up and capture", captured, "s"),
    ]


def data_bars(net: Net, device: torch.device, blocks: int, steps: int) -> list[Bar]:
    """Steps with the data path against steps of one batch: what of it the device does not do beside the rest."""
    cfg = config(net, "reg=nl")
    data = random_data(cfg, device)
    rigs = {"data": Rig(cfg, device, data), "one batch": Rig(cfg, device, OneBatch(data))}
    for rig in rigs.values():
        rig.steps(WARM_UP + 1)
    times = interleave({name: in_blocks(rig, steps) for name, rig in rigs.items()}, blocks)
    share = 100 * (1 - times.ratio("one batch", to="data"))
    return [Bar(f"{net.name}: data path, share of a step", share, "%", at_most=2)]
