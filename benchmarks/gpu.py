"""A CUDA device: what norm loss adds to a step, and images/s of the paper's networks.

Steps are whole, data path and all, of the executor that train.py chooses; nothing waits for the device within a block.
"""

import gc
from functools import partial
from typing import Any, NamedTuple

import torch
import torch._inductor.config
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from benchmarks.forms import FORMS
from benchmarks.steps import NoiseBatches, PlainLoop, StepLoop, config, random_data, with_executor
from benchmarks.timing import Times, Work, interleave, row
from normloss.config import Config
from normloss.regularizers import NormLoss, Regularizer
from normloss.training import device as devices

STEPS = 50  # a block
LAM = {"wd": 1e-4, "nl": 1e-2}


class Net(NamedTuple):
    """A network at the paper's batch size, how it is best run, and what it has to reach in images/s."""

    name: str
    words: str
    images: float
    plain: float | None = None  # times as fast as the plain loop


NETS = (
    Net("ResNet110", "dataset=cifar10 model=resnet110", images=25_000),
    Net("WRN-28-10, bf16", "dataset=cifar10 model=wrn28_10 train.precision=bf16", images=11_000, plain=2.5),
    Net("ResNet-50, bf16", "dataset=imagenet model=resnet50 train.precision=bf16 train.batch_size=128", images=3_500),
)


def measure(blocks: int = 5) -> list[dict[str, Any]]:
    """Return the figures of one device: STEPS steps per block, wall-clock seconds, the device's work included."""
    device = torch.device("cuda", torch.cuda.current_device())
    measured: list[dict[str, Any]] = []
    for rows, net in [*((step_rows, net) for net in NETS), (executor_rows, NETS[0]), (data_rows, NETS[0])]:
        cfg = config(*net.words.split(), "reg=nl", f"device={device}")
        devices.setup(cfg)
        measured += rows(net, cfg, device, blocks)
        gc.collect()  # a graph that goes during another's capture ends it
    return measured


def speeds(loops: dict[str, StepLoop], blocks: int, **others: Work) -> Times:
    """Return the Times of blocks of steps, next to `others`."""
    return interleave({name: partial(loop.steps, STEPS) for name, loop in loops.items()} | others, blocks)


# norm loss against weight decay ----------------------------------------------------------------------


class AutogradNormLoss(NormLoss):
    """The penalty as the paper writes it, in the loss: what most implementations do."""

    def loss(self, x: Tensor, logits: Tensor) -> Tensor:
        return self.lam * sum((1 - weight.flatten(1).norm(dim=1)).square().sum() for weight in self.weights)

    def before_step(self, optimizer: Optimizer | None = None) -> None:
        pass


def step_rows(net: Net, cfg: Config, device: torch.device, blocks: int) -> list[dict[str, Any]]:
    """A step with norm loss against torch's fused SGD(weight_decay); images/s; a plain loop."""
    data = random_data(cfg, device)
    loops = {
        "wd": StepLoop(cfg, device, data, Regularizer, weight_decay=LAM["wd"]),
        "nl": StepLoop(cfg, device, data, lambda model: NormLoss(model, lam=LAM["nl"])),
        "autograd": StepLoop(cfg, device, data, lambda model: AutogradNormLoss(model, lam=LAM["nl"])),
    }
    plain, batch = PlainLoop(cfg, device, LAM["wd"]), NoiseBatches(cfg, device)
    x = batch.x.contiguous()

    def plain_steps() -> None:
        """So many steps of the loop that most repositories have, its batch ready on the device."""
        devices.set_tf32(True)  # torch's default for convolutions; our fp32 is float32
        for _ in range(STEPS):
            plain.step(x, batch.y)
        devices.set_tf32(False)

    times = speeds(loops, blocks, plain=plain_steps)
    speed = cfg.train.batch_size * STEPS / times.median("nl")
    return [
        row(f"{net.name}: step, nl / wd", times.ratio("nl", "wd"), "x", at_most=1.01),
        row(f"{net.name}: step, nl by an autograd penalty / wd", times.ratio("autograd", "wd"), "x"),
        row(f"{net.name}: nl, {loops['nl'].executor.name}", speed, "images/s", net.images),
        row(f"{net.name}: nl, speed against a plain loop with wd", times.ratio("plain", to="nl"), "x", net.plain),
        row(f"{net.name}: step, wd", 1e3 * times.median("wd") / STEPS, "ms"),
    ]


# executors, data ----------------------------------------------------------------------------


def native_batch_norm(x: Tensor, mean: Tensor, var: Tensor, *rest: Any) -> Tensor:
    """F.batch_norm by torch's own kernel, where it would take cuDNN's."""
    weight, bias, training, momentum, eps = rest
    return torch.batch_norm(x, weight, bias, mean, var, training, momentum, eps, False)


VARIANTS: dict[str, tuple[str, Any, str, Any]] = {  # form, and what is changed while it warms up and is captured
    "compile, kernels combined": ("compile", torch._inductor.config, "combo_kernels", True),
    "graph, all of cuDNN's algorithms tried": ("graph", torch.backends.cudnn, "benchmark_limit", 0),
    "graph, torch's own batch norm": ("graph", F, "batch_norm", native_batch_norm),
}


def executor_rows(net: Net, cfg: Config, device: torch.device, blocks: int) -> list[dict[str, Any]]:
    """Each executor and variant against the eager step."""
    data = random_data(cfg, device)
    loops = {form: StepLoop(with_executor(cfg, form), device, data) for form in FORMS}
    for name, (form, owner, key, value) in VARIANTS.items():
        loops[name] = StepLoop(with_executor(cfg, form), device, data)
        torch._dynamo.reset()  # what was compiled before
        before = getattr(owner, key)
        setattr(owner, key, value)
        loops[name].warm_up()
        setattr(owner, key, before)
    times, targets = speeds(loops, blocks), {"graph": 3.0, "compile": 1.0}
    ratios = {name: times.ratio("eager", to=name) for name in loops if name != "eager"}
    return [
        row(f"{net.name}: step, eager", 1e3 * times.median("eager") / STEPS, "ms"),
        *(row(f"{net.name}: {name} to eager", x, "x", targets.get(name)) for name, x in ratios.items()),
    ]


def data_rows(net: Net, cfg: Config, device: torch.device, blocks: int) -> list[dict[str, Any]]:
    """Steps with the data path against steps of one batch: what of it the device does not do beside the rest."""
    data, one = random_data(cfg, device), NoiseBatches(cfg, device)
    one.x, one.y = next(data.train(0))
    loops = {"data": StepLoop(cfg, device, data), "one batch": StepLoop(cfg, device, one)}
    share = 100 * (1 - speeds(loops, blocks).ratio("one batch", to="data"))
    return [row(f"{net.name}: data path, share of a step", share, "%", at_most=2)]
