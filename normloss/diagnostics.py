"""What the weights look like, the same for every method."""

import torch
from torch import Tensor, nn

from normloss import functional
from normloss.regularizers import select_layers


@torch.no_grad()
def filter_norms(model: nn.Module) -> Tensor:
    """The norms of all filters of all convolutions and linear layers, in one vector."""
    layers = select_layers(model, "conv+linear").values()
    return torch.cat([functional.filter_norms(layer.weight.flatten(1)) for layer in layers])
