"""Zagoruyko & Komodakis 2016: WRN-d-k, pre-activation blocks k times as wide as He's.

The shortcut of a block that changes shape is a plain 1x1 convolution of the activated input: it, the first
convolution and each block's second convolution have no batch norm of their own behind them (D6).
"""

import torch.nn.functional as F
from torch import Tensor, nn


class WideBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-(dropout)-conv + shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        same = stride == 1 and in_channels == channels
        self.shortcut = None if same else nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = F.relu(self.bn2(self.conv1(active)))
        if self.dropout:
            out = F.dropout(out, self.dropout, self.training)
        return self.conv2(out) + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """WRN-depth-width, depth = 6n + 4: n blocks each of 16k, 32k and 64k channels on 32, 16 and 8 pixels."""

    def __init__(self, depth: int, width: int, num_classes: int, dropout: float = 0.0, in_channels: int = 3) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        channels = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(in_channels, channels[0], 3, 1, 1, bias=False)
        self.stage1 = stage(channels[0], channels[1], blocks, 1, dropout)
        self.stage2 = stage(channels[1], channels[2], blocks, 2, dropout)
        self.stage3 = stage(channels[2], channels[3], blocks, 2, dropout)
        self.bn = nn.BatchNorm2d(channels[3])
        self.fc = nn.Linear(channels[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(self.conv1(x))))  # (N, 64k, H/4, W/4)
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))


def stage(in_channels: int, channels: int, blocks: int, stride: int, dropout: float) -> nn.Sequential:
    first = WideBlock(in_channels, channels, stride, dropout)
    return nn.Sequential(first, *(WideBlock(channels, channels, 1, dropout) for _ in range(blocks - 1)))
