"""MultiBranchNet: a small student of parallel depthwise branches with channel attention."""

import math

import torch
from torch import Tensor, nn

from kdtune.models.resnet import SMALL_IMAGE_PIXELS

STAGE_CHANNELS = (32, 64, 128, 256)
KERNEL_SIZES = (3, 5, 7)


def eca_kernel_size(channels: int) -> int:
    """Return the width of ECA's 1-D convolution: |log2(C)/2 + 1/2| rounded to odd, at least 3.

    Wang et al. 2020, equation 12 with gamma 2 and b 1. Ties (C = 8, 128, 2048) round up.
    """
    exact = abs(math.log2(channels) / 2 + 0.5)
    return max(3, 2 * math.floor(exact / 2 + 1e-9) + 1)


class ECA(nn.Module):
    """Efficient channel attention (Wang et al. 2020): neighbours' means gate each channel."""

    def __init__(self, channels: int):
        super().__init__()
        size = eca_kernel_size(channels)
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return x * gate.transpose(1, 2).unsqueeze(-1)


class MultiBranchStage(nn.Module):
    """Parallel depthwise 3×3, 5×5 and 7×7 convolutions, ECA, a 1×1 convolution, a residual.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        stride: of the depthwise convolutions.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(channels_in, channels_in, k, stride, k // 2, groups=channels_in, bias=False)
            for k in KERNEL_SIZES
        )
        branch_channels = channels_in * len(KERNEL_SIZES)
        self.norm = nn.BatchNorm2d(branch_channels)
        self.eca = ECA(branch_channels)
        mixing = nn.Conv2d(branch_channels, channels_out, 1, bias=False)
        self.mix = nn.Sequential(mixing, nn.BatchNorm2d(channels_out))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            convolution = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C_out, H / stride, W / stride] of x [B, C_in, H, W]."""
        concatenated = torch.cat([branch(x) for branch in self.branches], dim=1)
        mixed: Tensor = self.mix(self.eca(self.norm(concatenated).relu_()))
        shortcut: Tensor = self.shortcut(x)
        return (mixed + shortcut).relu_()


class MultiBranchNet(nn.Module):
    """Four multi-branch stages of 32 to 256 channels, about 0.2 million parameters.

    The maps are as large as a ResNet's.

    Args:
        num_classes: K, length of the logits.
        image_size: height and width of the images, in pixels.
    """

    def __init__(self, num_classes: int, image_size: int):
        super().__init__()
        stride = 1 if image_size < SMALL_IMAGE_PIXELS else 2
        channels = STAGE_CHANNELS[0]
        convolution = nn.Conv2d(3, channels, 3, stride, 1, bias=False)
        self.stem = nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        self.stages = nn.ModuleList()
        for width in STAGE_CHANNELS:
            self.stages.append(MultiBranchStage(channels, width, stride))
            channels, stride = width, 2
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits [B, K] and the four stages [B, C, H, W] of images [B, 3, H, W]."""
        x = self.stem(images)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return self.classifier(x.mean((2, 3))), features
