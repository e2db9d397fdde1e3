"""What norm loss adds to a step of a transformer with AdamW, on one CPU thread, against AdamW's own weight decay.

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
    return [figure for make in (vit, gpt) for figure in ratios(make, blocks)]


def ratios(make: Callable[[], tuple[str, nn.Module, Callable[[nn.Module], Tensor]]], blocks: int) -> list[Measurement]:
    name, model, loss = make()
    works = {
        "wd": step(model, loss, weight_decay=0.01),
        "nl": step(model, loss, lam=0.01),
        "decoupled": step(model, loss, lam=1.0, decoupled=True),
    }
    times = interleave(works, blocks, time.process_time)
    return [
        Measurement(f"{name}: step, nl / AdamW's weight decay", times.ratio("nl", "wd"), "x", at_most=TARGET),
        Measurement(f"{name}: step, nl decoupled / the same", times.ratio("decoupled", "wd"), "x", at_most=TARGET),
        Measurement(f"{name}: step, AdamW's weight decay", 1e3 * times.median("wd"), "ms"),
    ]


def step(
    model: nn.Module, loss: Callable[[nn.Module], Tensor], weight_decay: float = 0.0, **options: Any
) -> Callable[[], None]:
    """One step on the same weights as the others': the learning rate costs the same at 0."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=weight_decay, fused=True)
    if options:
        NormLoss(model, **options).hook(optimizer)

    def work() -> None:
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()

    return work


def vit() -> tuple[str, nn.Module, Callable[[nn.Module], Tensor]]:
    import timm

    x = torch.randn(8, 3, 224, 224)
    return "ViT-Tiny", timm.create_model("vit_tiny_patch16_224"), lambda model: model(x).square().mean()


def gpt() -> tuple[str, nn.Module, Callable[[nn.Module], Tensor]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=4, n_embd=256, n_head=4, vocab_size=8192, n_positions=256, use_cache=False)
    x = torch.randint(8192, (8, 256))
    return "GPT", GPT2LMHeadModel(config), lambda model: model(input_ids=x, labels=x).loss
