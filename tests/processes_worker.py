"""What two processes do in test_processes.py: torchrun --nproc-per-node 2 tests/processes_worker.py FOLDER"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import normloss
from normloss.diagnostics import diagnostics

METHODS = {
    "NormLoss": lambda model: normloss.NormLoss(model, lam=0.3),
    "decoupled": lambda model: normloss.NormLoss(model, lam=0.3, decoupled=True),
    "WeightDecay": lambda model: normloss.WeightDecay(model, lam=0.1),
    "PBWN": lambda model: normloss.PBWN(model, layers="linear"),
    "RiemannianOblique": lambda model: normloss.RiemannianOblique(model, layers="linear"),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3), nn.Linear(3, 1))


def train(model: nn.Module, method) -> tuple[dict[str, torch.Tensor], float, list]:
    """Three steps on one batch, the same on every process: weights, the penalty's value, and the last norms."""
    reg = method(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        reg.before_step()
        optimizer.step()
        reg.after_step(optimizer)
    weights = {name: whole(parameter) for name, parameter in model.named_parameters()}
    with torch.no_grad():
        value = float(reg.value())
    return weights, value, [(layer.name, layer.norm_mean, layer.sigma_max) for layer in diagnostics(model)]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def sharded() -> dict:
    found = {}
    for name, method in METHODS.items():
        model = network()
        fully_shard(model)
        found[name] = train(model, method)
    refused = {}
    for name in ("SO", "SRIP", "SpectralNormPenalty", "Stiefel"):
        model = network()
        fully_shard(model)
        options = {} if name == "Stiefel" else {"lam": 0.1}
        try:
            train(
                model,
                lambda model, name=name, options=options: getattr(normloss, name)(model, layers="linear", **options),
            )
        except ValueError as error:
            refused[name] = str(error)
    before = normloss.NormLoss(model := network(), lam=0.3)
    fully_shard(model)
    found["sharded afterwards"] = train(model, lambda model: before)
    return {"found": found, "refused": refused}


def replicas() -> list[torch.Tensor]:
    """SRIP under DDP, each process with a random state of its own; this process's weights in the end."""
    model = network()
    torch.manual_seed(100 + dist.get_rank())
    wrapped = DistributedDataParallel(model)
    reg = normloss.SRIP(model, lam=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        F.mse_loss(wrapped(torch.randn(8, 4)), torch.randn(8, 1)).backward()
        reg.before_step()
        optimizer.step()
        reg.after_step()
    return [parameter.detach().clone() for parameter in model.parameters()]


if __name__ == "__main__":
    dist.init_process_group("gloo")
    result = {"replicas": replicas(), "sharded": sharded()}
    torch.save(result, Path(sys.argv[1]) / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()
