"""The regularizers by name; `build` makes the one that a config asks for."""

from typing import TYPE_CHECKING

from torch import nn

from normloss.regularizers.base import Chain, Regularizer, select_layers
from normloss.regularizers.penalties import NormLoss, WeightDecay

if TYPE_CHECKING:  # the library itself needs torch and numpy only
    from normloss.config import Reg

__all__ = ["REGULARIZERS", "Chain", "NormLoss", "Regularizer", "WeightDecay", "build", "select_layers"]

REGULARIZERS = {
    "none": Regularizer,
    "wd": WeightDecay,
    "nl": NormLoss,
}

# Keys of configs/reg/*.yaml that are not arguments of the method's class.
NOT_ARGUMENTS = {"name", "lam_milestones", "lam_gamma", "lam_values", "weight_decay"}


def build(model: nn.Module, reg: "Reg") -> Regularizer:
    """The regularizer of a checked config on `model`; call it before the optimizer is made.

    With reg.weight_decay, SGD's weight decay on every parameter is chained behind the method.
    """
    arguments = {key: getattr(reg, key) for key in reg.model_fields_set - NOT_ARGUMENTS}
    method = REGULARIZERS[reg.name](model, **arguments)
    if reg.weight_decay:
        return Chain(method, WeightDecay(model, lam=reg.weight_decay, half=True))
    return method
