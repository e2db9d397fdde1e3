"""A CUDA device: what norm loss adds to a step, and images/s of the paper's networks.

Steps are whole, data path and all, of the executor that train.py chooses; nothing waits for the device within a block.
"""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks import sharing
from benchmarks.steps import NoiseBatches, PlainLoop, StepLoop, config, random_data
from benchmarks.timing import Measurement, Times, interleave
from normloss.config import Config
from normloss.data.tensors import TensorData
from normloss.regularizers import NormLoss, Regularizer
from normloss.training import device as devices
from normloss.training.graph import WARM_UP

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
) -> list[Measurement]:
    """The figures of one device: `steps` steps a block, wall-clock seconds, all of the device's work included."""
    device = device or torch.device("cuda", torch.cuda.current_device())
    measured: list[Measurement] = []
    for net in nets:
        measured += step_rows(net, device, blocks, steps)
        gc.collect()  # a graph that goes during another's capture ends it
    for part in (executor_rows, sharing_rows, data_rows):
        measured += part(nets[0], device, blocks, steps)
        gc.collect()
    return measured


def config_of(net: Net, *words: str) -> Config:
    return config(*net.overrides, *words)


# norm loss against weight decay ----------------------------------------------------------------------


class AutogradNormLoss(Regularizer):
    """The penalty as the paper writes it, in the loss: what most implementations do."""

    def __init__(self, model: nn.Module, *, lam: float) -> None:
        super().__init__(model, lam=lam)
        self.norm_loss = NormLoss(model, lam=lam)

    def loss(self, x: Tensor, logits: Tensor) -> Tensor:
        return self.lam * sum((1 - weight.flatten(1).norm(dim=1)).square().sum() for weight in self.norm_loss.weights)


def step_rows(net: Net, device: torch.device, blocks: int, steps: int) -> list[Measurement]:
    """A step with norm loss against torch's fused SGD(weight_decay); images/s; a plain loop."""
    cfg = config_of(net, "reg=nl")
    devices.setup(cfg.model_copy(update={"device": str(device)}))
    data = random_data(cfg, device)
    loops = {
        "wd": StepLoop(cfg, device, data, Regularizer, weight_decay=LAM["wd"]),
        "nl": StepLoop(cfg, device, data, lambda model: NormLoss(model, lam=LAM["nl"])),
        "autograd": StepLoop(cfg, device, data, lambda model: AutogradNormLoss(model, lam=LAM["nl"])),
    }
    works = {name: in_blocks(loop, steps) for name, loop in loops.items()} | {"plain": plain_steps(cfg, device, steps)}
    for loop in loops.values():
        loop.warm_up()
    times = interleave(works, blocks)
    images = cfg.train.batch_size * steps
    speed, executor = times.ratio("plain", to="nl"), loops["nl"].executor.name
    return [
        Measurement(f"{net.name}: step, nl / wd", times.ratio("nl", "wd"), "x", at_most=1.01),
        Measurement(f"{net.name}: step, nl by an autograd penalty / wd", times.ratio("autograd", "wd"), "x"),
        Measurement(f"{net.name}: nl, {executor}", images / times.median("nl"), "images/s", at_least=net.images),
        Measurement(f"{net.name}: nl, speed against a plain loop with wd", speed, "x", at_least=net.plain),
        Measurement(f"{net.name}: step, wd", milliseconds(times, "wd", steps), "ms"),
    ]


def milliseconds(times: Times, name: str, steps: int) -> float:
    return 1e3 * times.median(name) / steps


def in_blocks(loop: StepLoop, steps: int) -> Callable[[], None]:
    return lambda: loop.steps(steps)


def plain_steps(cfg: Config, device: torch.device, steps: int) -> Callable[[], None]:
    """Return so many steps of the loop that most repositories have, its batch ready on the device."""
    loop, batch = PlainLoop(cfg, device, LAM["wd"]), NoiseBatches(cfg, device)
    x = batch.x.contiguous()

    def work() -> None:
        with tf32_convolutions():
            for _ in range(steps):
                loop.step(x, batch.y)

    return work


@contextmanager
def tf32_convolutions() -> Iterator[None]:
    """Within this block convolutions compute in TF32, torch's default; our fp32 is float32."""
    devices.set_tf32(True)
    try:
        yield
    finally:
        devices.set_tf32(False)


# executors, processes, data ----------------------------------------------------------------------------


def executor_rows(net: Net, device: torch.device, blocks: int, steps: int) -> list[Measurement]:
    """Each executor against the eager step, and what a new learning rate costs: a graph is then captured anew."""
    cfgs = {name: config_of(net, "reg=nl", f"train.executor={name}") for name in ("eager", "graph", "compile")}
    data = random_data(cfgs["eager"], device)
    loops = {name: StepLoop(cfg, device, data) for name, cfg in cfgs.items()}
    for loop in loops.values():
        loop.warm_up()
    times = interleave({name: in_blocks(loop, steps) for name, loop in loops.items()}, blocks)
    began = time.perf_counter()
    loops["graph"].optimizer.param_groups[0]["lr"] /= 10
    loops["graph"].steps(WARM_UP + 1)
    captured = time.perf_counter() - began
    return [
        Measurement(f"{net.name}: graph, speed against eager", times.ratio("eager", to="graph"), "x", at_least=3),
        Measurement(f"{net.name}: compile, speed against eager", times.ratio("eager", to="compile"), "x", at_least=1),
        Measurement(f"{net.name}: step, eager", milliseconds(times, "eager", steps), "ms"),
        Measurement(f"{net.name}: a new learning rate, warm-up and capture", captured, "s"),
    ]


def sharing_rows(net: Net, device: torch.device, blocks: int, steps: int) -> list[Measurement]:
    """Two processes that train at once on the device, as hydra.launcher.jobs=2 starts them, against one."""
    cfg = config_of(net, "reg=nl").model_copy(update={"device": str(device)})
    alone, together = (sharing.images_per_second(cfg, processes, blocks * steps) for processes in (1, 2))
    return [
        Measurement(f"{net.name}: two processes, nl", together, "images/s"),
        Measurement(f"{net.name}: two processes, speed against one", together / alone, "x", at_least=0.9),
    ]


def data_rows(net: Net, device: torch.device, blocks: int, steps: int) -> list[Measurement]:
    """Steps with the data path against steps of one batch: what of it the device does not do beside the rest."""
    cfg = config_of(net, "reg=nl")
    data = random_data(cfg, device)
    loops = {"data": StepLoop(cfg, device, data), "one batch": StepLoop(cfg, device, OneBatch(data))}
    for loop in loops.values():
        loop.warm_up()
    times = interleave({name: in_blocks(loop, steps) for name, loop in loops.items()}, blocks)
    share = 100 * (1 - times.ratio("one batch", to="data"))
    return [Measurement(f"{net.name}: data path, share of a step", share, "%", at_most=2)]


class OneBatch(NoiseBatches):
    """The first batch of a data set, over and over: steps without a data path."""

    def __init__(self, data: TensorData | NoiseBatches) -> None:
        self.device, (self.x, self.y) = data.device, next(data.train(0))
