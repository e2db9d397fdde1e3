"""Norm loss in the Trainer of Hugging Face: python examples/hugging_face.py"""

import tempfile

import torch
from digits import images, show
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

import normloss

torch.manual_seed(0)
config = ViTConfig(
    image_size=8, patch_size=4, num_channels=1, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=64, num_labels=10,
)  # fmt: skip
model = ViTForImageClassification(config)
reg = normloss.NormLoss(model, lam=25.0, decoupled=True)  # lr lam = 0.05: a short run


class Hook(TrainerCallback):
    """The optimizer is there once training begins; accelerate's wrapper around it is looked through."""

    def on_train_begin(self, args, state, control, optimizer=None, **others):
        reg.hook(optimizer)


with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, num_train_epochs=8, per_device_train_batch_size=64, gradient_accumulation_steps=2, learning_rate=2e-3,
        weight_decay=0.0, lr_scheduler_type="constant", use_cpu=True, report_to=[], save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    digits = [{"pixel_values": x, "labels": y} for x, y in images()]
    show("before", reg.norms())
    Trainer(model=model, args=arguments, train_dataset=digits, callbacks=[Hook()]).train()
    show("after", reg.norms())
