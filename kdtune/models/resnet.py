"""torchvision's ResNets, with every stage's feature map beside the logits.

Parameter names are torchvision's, so its checkpoints load as they are. Students on images under
64 px get the 3×3 stride-1 stem without max-pool that is usual on CIFAR.
"""

from collections.abc import Mapping

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

SMALL_IMAGE_PIXELS = 64
"""Images below this many pixels would be shrunk to almost nothing by the ImageNet stem."""


class ResNet(nn.Module):
    """A torchvision ResNet that returns its four stages too.

    Args:
        network: the torchvision network whose layers are used.
        small_stem: begin with a 3×3 convolution of stride 1, without max-pool.
    """

    def __init__(self, network: torchvision.models.ResNet, small_stem: bool):
        super().__init__()
        self.conv1, self.bn1, self.relu = network.conv1, network.bn1, network.relu
        self.maxpool: nn.Module = network.maxpool
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        self.fc = network.fc
        if small_stem:
            self.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.maxpool = nn.Identity()

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Map images [B, 3, H, W] to logits [B, K] and the four stages, [B, C, H, W] each."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return self.fc(x.mean((2, 3))), features


def resnet18(num_classes: int, image_size: int) -> ResNet:
    """ResNet-18 (He et al. 2016): 64, 128, 256, 512 channels."""
    network = torchvision.models.resnet18(num_classes=num_classes)
    return ResNet(network, small_stem=image_size < SMALL_IMAGE_PIXELS)


def resnet50(num_classes: int, image_size: int) -> ResNet:
    """ResNet-50 (He et al. 2016): 256, 512, 1024, 2048 channels."""
    network = torchvision.models.resnet50(num_classes=num_classes)
    return ResNet(network, small_stem=image_size < SMALL_IMAGE_PIXELS)


def resnet_from_weights(weights: Mapping[str, Tensor]) -> tuple[str, ResNet]:
    """Build the ResNet of torchvision's whose weights these are, of any depth and width.

    Blocks, widths, classes and stem are read from names and shapes. A 3×3 first convolution is
    taken for the CIFAR stem, with stride 1 and without max-pool; a 7×7 one for ImageNet's.

    Args:
        weights: a `state_dict` with torchvision's names.

    Returns:
        The architecture's name, such as ``ResNet34``, and the network with these weights.

    Raises:
        ValueError: a weight is missing, is too many or has another shape; the text says which.
    """
    missing = [key for key in REQUIRED_KEYS if key not in weights or weights[key].dim() == 0]
    if missing:
        raise ValueError(f"there is no {missing[0]}")
    block = Bottleneck if "layer1.0.conv3.weight" in weights else BasicBlock
    blocks = [
        len({key.split(".")[1] for key in weights if key.startswith(f"layer{stage}.")})
        for stage in (1, 2, 3, 4)
    ]
    conv_shape = weights["layer1.0.conv2.weight"].shape
    width = max(1, conv_shape[1])
    groups = max(1, conv_shape[0] // width)
    network = torchvision.models.ResNet(
        block,
        blocks,
        num_classes=weights["fc.weight"].shape[0],
        groups=groups if block is Bottleneck else 1,
        width_per_group=width if block is Bottleneck else 64,
    )
    model = ResNet(network, small_stem=weights["conv1.weight"].shape[2:] == (3, 3))
    load_weights_strictly(model, weights)
    depth = 2 + sum(blocks) * (3 if block is Bottleneck else 2)
    variant = "" if (groups, width) == (1, 64) else f"-{groups}x{width}"
    return f"ResNet{depth}{variant}", model


REQUIRED_KEYS = ("conv1.weight", "layer1.0.conv2.weight", "fc.weight")
"""Weights that every ResNet of torchvision's has."""


def load_weights_strictly(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load all weights or none.

    Raises:
        ValueError: a weight is missing, is too many or has another shape; the text says which.
    """
    expected = model.state_dict()
    counters = {
        key for key in expected if key.endswith("num_batches_tracked")
    }  # older files: none
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
