"""Weights after 20 steps of ResNet20 with norm loss, as nl_steps.json holds them: python tests/data/nl_steps.py

Made at commit 1ae07eb (version 0.1.0, the form "batched" on one CPU thread): unfinished runs of that version go on
with the same bits. "none": without a regularizer, by which to tell whether a machine computes as that one did.
"""

import hashlib
import json

import torch
import torch.nn.functional as F
from torch import nn

import normloss
from normloss.models.resnet_cifar import ResNetCifar

STEPS = 20


def trained(method) -> nn.Module:
    """ResNet20 after STEPS steps on random images, 16 per batch, laid out and updated as train.py does it."""
    torch.manual_seed(0)
    model = ResNetCifar(depth=20, num_classes=10).to(memory_format=torch.channels_last)
    reg = method(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(16, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
        y = torch.randint(10, (16,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        reg.before_step()
        optimizer.step()
        reg.after_step()
    return model


def record(model: nn.Module) -> dict[str, object]:
    """SHA-256 over all parameters, and the first weights of some."""
    weights = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    digest = hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in weights.values())).hexdigest()
    some = list(weights)[::13]
    return {"sha256": digest, "first": {name: weights[name].flatten()[:3].tolist() for name in some}}


METHODS = {"none": normloss.Regularizer, "nl": lambda model: normloss.NormLoss(model, lam=1e-2)}

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({name: record(trained(method)) for name, method in METHODS.items()}, indent=1))
