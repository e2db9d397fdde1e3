"""The networks of the paper by family; `build` makes the one that a config asks for.

May import config only. Start reading at resnet_cifar.py.
"""

from collections.abc import Callable

from torch import nn

from normloss.config import Model
from normloss.models.initialisation import initialise
from normloss.models.resnet_cifar import ResNetCifar
from normloss.models.resnet_imagenet import resnet_imagenet
from normloss.models.wide_resnet import WideResNet

FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "resnet_cifar": ResNetCifar,
    "wide_resnet": WideResNet,
    "resnet_imagenet": resnet_imagenet,
}


def build(cfg: Model, num_classes: int, in_channels: int) -> nn.Module:
    """Return the network of a checked config with weights drawn from torch's default generator."""
    arguments = cfg.model_dump(exclude={"name", "family", "init", "gamma_init"})
    model = FAMILIES[cfg.family](num_classes=num_classes, in_channels=in_channels, **arguments)
    initialise(model, cfg.init, cfg.gamma_init)
    return model
