"""Norm loss with Accelerate and gradient accumulation: python examples/accelerate_loop.py"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from digits import loader, network, show

import normloss

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = network()
reg = normloss.NormLoss(model, lam=0.3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
reg.hook(optimizer)  # accelerate calls its step only where gradients are complete
model, optimizer, batches = accelerator.prepare(model, optimizer, loader())

show("before", reg.norms())
for _ in range(10):
    for x, y in batches:
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
show("after", reg.norms())
