"""Norm loss in a plain PyTorch loop: python examples/plain_pytorch.py"""

import torch
import torch.nn.functional as F
from digits import loader, network, show

import normloss

model = network()
reg = normloss.NormLoss(model, lam=0.3)  # before the optimizer; it replaces weight decay
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

print(reg)  # what is covered, and what is not
show("before", reg.norms())
for _ in range(5):
    for x, y in loader():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        reg.before_step()  # after clipping, before the step
        optimizer.step()
        reg.after_step()
show("after", reg.norms())
