"""ResNets of torchvision that return the feature map of every stage beside the logits.

Parameter names are torchvision's, so its checkpoints load as they are. Students on images under
64 px get the 3×3 stride-1 stem without max-pool that is usual on CIFAR.
"""

from collections.abc import Mapping
from functools import partial

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

SMALL_IMAGE_PIXELS = 64
"""Images with fewer pixels a side get the small stem; ImageNet's would leave almost nothing."""


class ResNet(torchvision.models.ResNet):  # type: ignore[misc]
    """A torchvision ResNet that returns its four stages, too.

    Args:
        block: class of its blocks.
        depths: number of blocks in each stage.
        num_classes: K.
        small_stem: start with a 3×3 convolution of stride 1, without max-pool.
        groups: groups of the 3×3 convolutions.
        width: channels a group has in the first stage.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        depths: list[int],
        num_classes: int,
        small_stem: bool,
        groups: int = 1,
        width: int = 64,
    ):
        super().__init__(block, depths, num_classes, groups=groups, width_per_group=width)
        if small_stem:
            self.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.maxpool = nn.Identity()

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits [B, K] and the four stages [B, C, H, W] of images [B, 3, H, W]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return self.fc(x.mean((2, 3))), features


def _build_resnet(
    block: type[BasicBlock | Bottleneck], depths: list[int], num_classes: int, image_size: int
) -> ResNet:
    return ResNet(block, depths, num_classes, image_size < SMALL_IMAGE_PIXELS)


resnet18 = partial(_build_resnet, BasicBlock, [2, 2, 2, 2])
"""ResNet-18 (He et al. 2016), with 64, 128, 256 and 512 channels."""

resnet50 = partial(_build_resnet, Bottleneck, [3, 4, 6, 3])
"""ResNet-50 (He et al. 2016), with 256, 512, 1024 and 2048 channels."""


def resnet_from_weights(weights: Mapping[str, Tensor]) -> tuple[str, ResNet]:
    """Build the torchvision ResNet, of any depth and width, that has these weights.

    Its shape follows from names and shapes; a 3×3 first convolution means the small stem.

    Returns:
        The architecture's name, such as ``ResNet34``, and the network with these weights.
    """
    for key in ("conv1.weight", "layer1.0.conv2.weight", "fc.weight"):
        if key not in weights or weights[key].dim() == 0:
            raise ValueError(f"there is no {key}")
    is_deep = "layer1.0.conv3.weight" in weights
    depths = [
        len({key.split(".")[1] for key in weights if key.startswith(f"layer{stage}.")})
        for stage in (1, 2, 3, 4)
    ]
    conv_shape = weights["layer1.0.conv2.weight"].shape
    width = max(1, conv_shape[1]) if is_deep else 64
    groups = max(1, conv_shape[0] // width) if is_deep else 1
    small_stem = weights["conv1.weight"].shape[2:] == (3, 3)
    block, num_classes = Bottleneck if is_deep else BasicBlock, weights["fc.weight"].shape[0]
    model = ResNet(block, depths, num_classes, small_stem, groups, width)
    load_weights_strictly(model, weights)
    depth = 2 + sum(depths) * (3 if is_deep else 2)
    variant = "" if (groups, width) == (1, 64) else f"-{groups}x{width}"
    return f"ResNet{depth}{variant}", model


def load_weights_strictly(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights that must be complete, except for batch counters, which old files lack.

    Args:
        model: the network.
        weights: a `state_dict` with its names.

    Raises:
        ValueError: a weight is missing, superfluous or of another shape; the text names it.
    """
    expected = model.state_dict()
    counters = {key for key in expected if key.endswith("num_batches_tracked")}
    for problem, keys in {
        "lacks": expected.keys() - counters - weights.keys(),
        "has besides": weights.keys() - expected.keys(),
    }.items():
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ValueError(f"it {problem} {min(keys)}{more}")
    for key, tensor in weights.items():
        if tensor.shape != expected[key].shape:
            raise ValueError(f"{key} is {list(tensor.shape)}, not {list(expected[key].shape)}")
    model.load_state_dict({**{key: expected[key] for key in counters}, **weights})
