"""Norm loss in PyTorch Lightning: python examples/lightning_module.py"""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from digits import loader, network, show

import normloss


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = network()
        self.reg = normloss.NormLoss(self.model, lam=0.3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.model(x), y)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        self.reg.hook(optimizer)
        return optimizer


module = Module()
show("before", module.reg.norms())
trainer = pl.Trainer(
    accelerator="cpu", max_epochs=5, gradient_clip_val=1.0, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip
trainer.fit(module, loader())
show("after", module.reg.norms())
