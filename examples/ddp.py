"""Norm loss under DDP: torchrun --nproc-per-node 2 examples/ddp.py"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from digits import images, network, show
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import normloss

dist.init_process_group("gloo")
model = network()
reg = normloss.NormLoss(model, lam=0.3)  # on the raw model; each process adds the same gradient
parallel = DistributedDataParallel(model)
optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1, momentum=0.9)
reg.hook(optimizer)

data = images()
sampler = DistributedSampler(data)
if dist.get_rank() == 0:
    show("before", reg.norms())
for epoch in range(8):
    sampler.set_epoch(epoch)
    for x, y in DataLoader(data, batch_size=32, sampler=sampler):
        optimizer.zero_grad()
        F.cross_entropy(parallel(x), y).backward()
        optimizer.step()
if dist.get_rank() == 0:
    show("after", reg.norms())
dist.destroy_process_group()
