"""Norm loss on a model of timm with AdamW, decoupled: python examples/timm_model.py"""

import timm
import torch
import torch.nn.functional as F
from digits import loader, show

import normloss

torch.manual_seed(0)
model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, in_chans=1, depth=2, num_classes=10)
reg = normloss.NormLoss(model, lam=50.0, layers=["conv+linear", "!head"], decoupled=True)  # lr lam = 0.05: a short run
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
reg.hook(optimizer)

show("before", reg.norms())
for _ in range(8):
    for x, y in loader(size=32, batch_size=128):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
show("after", reg.norms())
