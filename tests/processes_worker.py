"""What two processes do in test_processes.py: torchrun --nproc-per-node 2 tests/processes_worker.py FOLDER"""

import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_module
from torch.nn.parallel import DistributedDataParallel

import normloss
from normloss.diagnostics import diagnostics
from tests import closed_form
from tests.closed_form import batches, norm_loss, sgd

METHODS = {
    "NormLoss": lambda model: normloss.NormLoss(model, lam=0.3),
    "decoupled": lambda model: normloss.NormLoss(model, lam=0.3, decoupled=True),
    "WeightDecay": lambda model: normloss.WeightDecay(model, lam=0.1),
    "PBWN": lambda model: normloss.PBWN(model, layers="linear"),
    "RiemannianOblique": lambda model: normloss.RiemannianOblique(model, layers="linear"),
}
WHOLE = {
    "SO": lambda model: normloss.SO(model, lam=0.1),
    "SRIP": lambda model: normloss.SRIP(model, lam=0.1),
    "SpectralNormPenalty": lambda model: normloss.SpectralNormPenalty(model, lam=0.1),
    "Stiefel": lambda model: normloss.Stiefel(model, layers="linear"),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3), nn.Linear(3, 1))


def train(model: nn.Module, method, x: Tensor | None = None) -> tuple[dict[str, Tensor], float, list]:
    """Three steps on one batch, the same on every process: weights, the penalty's value, and the last norms."""
    reg = method(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1)) if x is None else x
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        reg.before_step()
        optimizer.step()
        reg.after_step(optimizer)
    with torch.no_grad():
        value = float(reg.value())
    return whole(model), value, [(layer.name, layer.norm_mean, layer.sigma_max) for layer in diagnostics(model)]


def whole(model: nn.Module) -> dict[str, Tensor]:
    parameters = {name.removeprefix("module."): parameter.detach() for name, parameter in model.named_parameters()}
    return {name: p.full_tensor() if isinstance(p, DTensor) else p.clone() for name, p in parameters.items()}


def refused(work: Callable[[], object]) -> str:
    try:
        work()
    except ValueError as error:
        return str(error)
    return ""


def shards() -> dict[str, tuple]:
    found = {}
    for name, method in METHODS.items():
        fully_shard(model := network())
        found[name] = train(model, method)
    before = norm_loss(model := network())
    fully_shard(model)
    return {**found, "sharded afterwards": train(model, lambda model: before)}


def whole_matrices_of_shards() -> dict[str, str]:
    said = {}
    for name, method in WHOLE.items():
        fully_shard(model := network())
        said[name] = refused(partial(train, model, method))
    return said


def flat_shards() -> list[str]:
    """What FSDP1 gets: a regularizer built on its wrapper, and one built before it."""
    said = []
    for original in (True, False):
        wrap = partial(FullyShardedDataParallel, use_orig_params=original, device_id=torch.device("cpu"))
        said.append(refused(partial(norm_loss, wrap(network()))))
        said.append(refused(partial(normloss.WeightDecay, wrap(network()), lam=0.1)))
        reg = norm_loss(model := network())
        wrapped = wrap(model)
        wrapped(torch.ones(2, 4)).sum().backward()
        said.append(refused(reg.before_step))
    return said


def replicated() -> dict[str, tuple]:
    """Weights that are DTensors on every process, and gradients that are still to be summed (Partial)."""
    found, mesh = {}, init_device_mesh("cpu", (2,))
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1)).chunk(2)[dist.get_rank()]
    for name, method in {**METHODS, **WHOLE}.items():
        model = distribute_module(network(), mesh)
        found[name] = train(model, method, DTensor.from_local(x, mesh, [Shard(0)]))
    return found


# one update of tests/closed_form.py's network: each process has one batch, or three to accumulate ----------------


def own(n: int) -> list[tuple[Tensor, Tensor]]:
    return batches(2 * n)[dist.get_rank() :: 2]


def accelerated(n: int, call: bool, bucket_view: bool) -> dict[str, Tensor]:
    from accelerate import Accelerator, DistributedDataParallelKwargs

    buckets = DistributedDataParallelKwargs(gradient_as_bucket_view=bucket_view)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=n, kwargs_handlers=[buckets])
    reg = norm_loss(model := closed_form.network())
    model, optimizer = accelerator.prepare(model, sgd(model.parameters()))
    assert isinstance(model, DistributedDataParallel)
    if not call:
        reg.hook(optimizer)
    for x, y in own(n):
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(x), y))
            if call and accelerator.sync_gradients:
                reg.before_step()
            optimizer.step()
            optimizer.zero_grad()
    return whole(model)


def fully_sharded(n: int, call: bool, each: bool) -> dict[str, Tensor]:
    """each: gradients are reduced after each micro-batch, not after the last only."""
    fully_shard(model := closed_form.network())
    reg, optimizer = norm_loss(model), sgd(model.parameters())
    if not call:
        reg.hook(optimizer)
    for k, (x, y) in enumerate(own(n)):
        model.set_requires_gradient_sync(each or k == n - 1)
        (F.cross_entropy(model(x), y) / n).backward()
    if call:
        reg.before_step()
    optimizer.step()
    return whole(model)


UPDATES = {
    f"{loop.__name__} {n} {'called' if call else 'hooked'} {option}": partial(loop, n, call, option)
    for loop in (accelerated, fully_sharded)
    for n in (1, 3)
    for call in (True, False)
    for option in (True, False)
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    result = {work.__name__: work() for work in (shards, whole_matrices_of_shards, flat_shards, replicated)}
    result["updates"] = {name: update() for name, update in UPDATES.items()}
    torch.save(result, Path(sys.argv[1]) / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()
