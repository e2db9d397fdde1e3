"""The layer groups of a network, what each logged over training, and effective learning rates. torch-free.

epochs.jsonl lists one value per layer, in the order of the convolutions and linear layers of the model. Behind batch
norm only a filter's direction counts, and a step turns it by about lr |g| / |w|^2, g the gradient at norm one (van
Laarhoven 2017; Zhang et al. 2019): two methods that hold norms apart also train at different learning rates.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from normloss.runs.records import RunRecord

BLOCKS = {18: ((2, 2, 2, 2), 2), 50: ((3, 4, 6, 3), 3)}  # of torchvision's networks: blocks per stage, layers per block
NAMES = {
    "norm": "filter norm",
    "effective_lr": "effective learning rate lr / |w|²",
    "turn": "turn of a filter per epoch (degrees)",
}
KEYS = {"norm": "layer_norms", "effective_lr": "layer_norms", "turn": "layer_turns"}  # of epochs.jsonl


def groups(model: Mapping[str, Any]) -> dict[str, slice]:
    """Return stem, stage 1, ..., classifier -> the places of its layers in a list of all, for a config's model."""
    depth, family = model["depth"], model["family"]
    if family == "resnet_cifar":
        sizes = [1, *[2 * ((depth - 2) // 6)] * 3, 1]
    elif family == "wide_resnet":  # every stage begins with a block that has a shortcut of its own, if it is wider
        shortcuts = [int(model["width"] > 1), 1, 1]
        sizes = [1, *(2 * ((depth - 4) // 6) + shortcut for shortcut in shortcuts), 1]
    else:
        stages, convolutions = BLOCKS[depth]
        shortcuts = [int(convolutions == 3), 1, 1, 1]
        sizes = [1, *(convolutions * n + shortcut for n, shortcut in zip(stages, shortcuts, strict=True)), 1]
    names = ["stem", *(f"stage {i + 1}" for i in range(len(sizes) - 2)), "classifier"]
    ends = np.cumsum(sizes)
    return {name: slice(int(end - size), int(end)) for name, size, end in zip(names, sizes, ends, strict=True)}


def has_logged(run: RunRecord, quantity: str) -> bool:
    """Return whether every epoch has a value for each layer."""
    layers = groups(run.config["model"])["classifier"].stop
    return all(len(epoch.get(KEYS[quantity]) or ()) == layers for epoch in run.epochs)


def over_epochs(run: RunRecord, quantity: str, places: slice) -> np.ndarray:
    """Return the mean over a group's layers after each epoch, (epochs,).

    effective_lr: lr / m^2 of each layer, m the mean norm of its filters.
    """
    values = np.array([epoch[KEYS[quantity]][places] for epoch in run.epochs], dtype=float)  # (epochs, layers)
    if quantity == "effective_lr":
        values = np.array([[epoch["lr"]] for epoch in run.epochs]) / np.square(values)
    return values.mean(axis=1)
