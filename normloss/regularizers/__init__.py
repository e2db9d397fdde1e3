"""The regularizers by name; `build` makes the one that a config asks for."""

import inspect
from typing import Any

from torch import nn

from normloss.regularizers.base import Chain, Regularizer
from normloss.regularizers.coverage import select_layers, select_weights
from normloss.regularizers.jacobian import JacobianPenalty
from normloss.regularizers.penalties import DSO, MC, SO, SRIP, NormLoss, SpectralNormPenalty, WeightDecay
from normloss.regularizers.projections import PBWN, RiemannianOblique, Stiefel
from normloss.regularizers.reparametrizations import OLM, ONI, WeightNorm

__all__ = [
    "DSO",
    "MC",
    "OLM",
    "ONI",
    "PBWN",
    "REGULARIZERS",
    "SO",
    "SRIP",
    "Chain",
    "JacobianPenalty",
    "NormLoss",
    "Regularizer",
    "RiemannianOblique",
    "SpectralNormPenalty",
    "Stiefel",
    "WeightDecay",
    "WeightNorm",
    "build",
    "select_layers",
    "select_weights",
]

REGULARIZERS: dict[str, type[Regularizer]] = {
    "none": Regularizer,
    "wd": WeightDecay,
    "nl": NormLoss,
    "wn": WeightNorm,
    "pbwn": PBWN,
    "oni": ONI,
    "olm": OLM,
    "olm_l1": OLM,
    "so": SO,
    "dso": DSO,
    "mc": MC,
    "srip": SRIP,
    "sn": SpectralNormPenalty,
    "jac": JacobianPenalty,
    "oblique": RiemannianOblique,
    "stiefel": Stiefel,
}


def build(model: nn.Module, reg: Any) -> Regularizer:
    """Return the regularizer of a checked config on `model`; call it before the optimizer is made.

    reg: the method's name, its arguments by name, and SGD's weight decay in addition, as a pydantic model.
    With reg.weight_decay, SGD's weight decay on every parameter is chained behind the method.
    Raises ValueError for what the method refuses.
    """
    of_name = REGULARIZERS[reg.name]
    accepted = inspect.signature(of_name).parameters
    arguments = {key: value for key, value in reg.model_dump().items() if key in accepted}
    if "seed" in accepted:
        arguments["seed"] = None  # runs draw from torch's generators, which their checkpoints hold
    method = of_name(model, **arguments)
    if reg.weight_decay:
        return Chain(method, WeightDecay(model, lam=reg.weight_decay, half=True))
    return method
