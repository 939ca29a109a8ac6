"""ResNets of torchvision that return the feature map of every stage beside the logits.

Parameter names are torchvision's, so its checkpoints load as they are.
"""

from collections.abc import Mapping
from functools import partial

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from kdtune.models.state_dicts import load_weights_strictly

SMALL_IMAGE_PIXELS = 64
"""Images with fewer pixels a side get the small stem; ImageNet's would leave almost nothing."""


class ResNet(torchvision.models.ResNet):  # type: ignore[misc]
    """A torchvision ResNet that returns its four stages, too."""

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits [B, K] and the four stages [B, C, H, W] of images [B, 3, H, W]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        stages = self.layer1, self.layer2, self.layer3, self.layer4
        features = [x := stage(x) for stage in stages]
        return self.fc(x.mean((2, 3))), features


def _build_resnet(
    block: type[BasicBlock | Bottleneck],
    depths: list[int],
    num_classes: int,
    image_size: int,
    groups: int = 1,
    width: int = 64,
) -> ResNet:
    """Build a ResNet; small images get the stem of stride 1, without max-pool, usual on CIFAR."""
    model = ResNet(block, depths, num_classes, groups=groups, width_per_group=width)
    if image_size < SMALL_IMAGE_PIXELS:
        model.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model


resnet18 = partial(_build_resnet, BasicBlock, [2, 2, 2, 2])
"""ResNet-18 (He et al. 2016), with 64, 128, 256 and 512 channels."""

resnet50 = partial(_build_resnet, Bottleneck, [3, 4, 6, 3])
"""ResNet-50 (He et al. 2016), with 256, 512, 1024 and 2048 channels."""


def resnet_from_weights(weights: Mapping[str, Tensor]) -> tuple[str, ResNet]:
    """Return name, such as ``ResNet34``, and network of torchvision's ResNet with these weights.

    Its shape follows from names and shapes; a 3×3 first convolution means the small stem.
    """
    for key in ("conv1.weight", "layer1.0.conv2.weight", "fc.weight"):
        if key not in weights or weights[key].dim() == 0:
            raise ValueError(f"there is no {key}")
    is_deep = "layer1.0.conv3.weight" in weights
    stages = [f"layer{stage}." for stage in (1, 2, 3, 4)]
    numbers = [[key.split(".")[1] for key in weights if key.startswith(s)] for s in stages]
    depths = [len({number for number in stage if number.isdigit()}) for stage in numbers]
    conv_shape = weights["layer1.0.conv2.weight"].shape
    width = max(1, conv_shape[1]) if is_deep else 64
    groups = max(1, conv_shape[0] // width) if is_deep else 1
    image_size = 32 if weights["conv1.weight"].shape[2:] == (3, 3) else SMALL_IMAGE_PIXELS
    block, num_classes = Bottleneck if is_deep else BasicBlock, weights["fc.weight"].shape[0]
    model = _build_resnet(block, depths, num_classes, image_size, groups, width)
    load_weights_strictly(model, weights)
    depth = 2 + sum(depths) * (3 if is_deep else 2)
    variant = "" if (groups, width) == (1, 64) else f"-{groups}x{width}"
    return f"ResNet{depth}{variant}", model
