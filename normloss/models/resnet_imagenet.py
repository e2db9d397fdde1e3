"""torchvision's ResNet-18 and ResNet-50: stride in the 3x3 convolution, shortcut B, no zero-initialised scale."""

from torch import nn


def resnet_imagenet(depth: int, num_classes: int, in_channels: int = 3) -> nn.Module:
    """Return ResNet-18 or -50 for `in_channels`; `normloss.models.initialise` draws the weights anew."""
    import torchvision  # here: it takes a second to import, which other networks need not wait for

    model = {18: torchvision.models.resnet18, 50: torchvision.models.resnet50}[depth](num_classes=num_classes)
    if in_channels != 3:
        model.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
    return model
