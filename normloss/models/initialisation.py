"""Initial weights of the recipes that the paper inherits."""

from typing import Literal

from torch import nn


def initialise(model: nn.Module, init: Literal["fan_out", "fan_in"], gamma_init: Literal["ones", "uniform"]) -> None:
    """Draw convolutions N(0, 2 / fan), batch norm's scale 1 or U(0, 1), linear layers U(+-1/sqrt(p)); biases 0.

    init: "fan_out" (fan = k^2 C_out: fb.resnet.torch models/resnet.lua) or "fan_in" (k^2 C_in: wide-resnet
    models/utils.lua). gamma_init: "ones", or "uniform" as Torch7's default, which wide-resnet used. D13.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=init, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):  # torch starts it at scale 1 and bias 0
            if gamma_init == "uniform":
                nn.init.uniform_(module.weight)
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.zeros_(module.bias)
