"""Time that norm loss adds to a step of a transformer with AdamW, one CPU thread, against AdamW's own weight decay.

ViT-Tiny of timm, 8 images of 224 x 224; a GPT-2 of 4 layers and width 256, 8 sequences of 256 tokens.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import Measurement, interleave
from normloss import NormLoss

TARGET = 1.02


def measure(blocks: int = 5) -> list[Measurement]:
    """One step per block, CPU seconds."""
    measured = []
    for name, (model, loss) in {"ViT-Tiny": vit(), "GPT": gpt()}.items():
        works = {
            "wd": step(model, loss, weight_decay=0.01),
            "nl": step(model, loss, lam=0.01),
            "decoupled": step(model, loss, lam=1.0, decoupled=True),
        }
        times = interleave(works, blocks, time.process_time)
        measured += [
            Measurement(f"{name}: step, nl / AdamW's weight decay", times.ratio("nl", "wd"), "x", at_most=TARGET),
            Measurement(f"{name}: step, nl decoupled / the same", times.ratio("decoupled", "wd"), "x", at_most=TARGET),
            Measurement(f"{name}: step, AdamW's weight decay", 1e3 * times.median("wd"), "ms"),
        ]
    return measured


def step(model: nn.Module, loss: Callable[[], Tensor], weight_decay: float = 0.0, **options: Any) -> Callable[[], None]:
    """One step on the same weights as the others': the learning rate costs the same at 0."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=weight_decay, fused=True)
    if options:
        NormLoss(model, **options).hook(optimizer)

    def work() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return work


def vit() -> tuple[nn.Module, Callable[[], Tensor]]:
    import timm

    model, x = timm.create_model("vit_tiny_patch16_224"), torch.randn(8, 3, 224, 224)
    return model, lambda: model(x).square().mean()


def gpt() -> tuple[nn.Module, Callable[[], Tensor]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=4, n_embd=256, n_head=4, vocab_size=8192, n_positions=256, use_cache=False)
    model, x = GPT2LMHeadModel(config), torch.randint(8192, (8, 256))
    return model, lambda: model(input_ids=x, labels=x).loss
