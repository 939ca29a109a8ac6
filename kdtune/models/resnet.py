"""torchvision's ResNets, with every stage's feature map beside the logits.

Parameter names are torchvision's, so its checkpoints load as they are. Images under 64 px get
the 3×3 stride-1 stem without max-pool that is usual on CIFAR.
"""

import torchvision
from torch import Tensor, nn

SMALL_IMAGE = 64
"""Images below this many pixels would be shrunk to almost nothing by the ImageNet stem."""


class ResNet(nn.Module):
    """A torchvision ResNet that returns its four stages too.

    Args:
        network: the torchvision network whose layers are used.
        image_size: height and width of the images, in pixels.
    """

    def __init__(self, network: torchvision.models.ResNet, image_size: int):
        super().__init__()
        self.conv1, self.bn1, self.relu = network.conv1, network.bn1, network.relu
        self.maxpool: nn.Module = network.maxpool
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        self.fc = network.fc
        if image_size < SMALL_IMAGE:
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
    return ResNet(torchvision.models.resnet18(num_classes=num_classes), image_size)


def resnet50(num_classes: int, image_size: int) -> ResNet:
    """ResNet-50 (He et al. 2016): 256, 512, 1024, 2048 channels."""
    return ResNet(torchvision.models.resnet50(num_classes=num_classes), image_size)
