r"""A plug-in with two students: networks that return logits and feature maps.

    kdtune sweep --plugin own_model.py --models Thin,Plain --methods at --data digits \
        --teacher teacher.pth --trials 1 --epochs 1 --name own-model

`Thin` returns both itself; `with_feature_maps` extracts the maps of a classifier.
"""

from torch import nn

from kdtune.models.feature_maps import with_feature_maps


def stage(before, after, stride):
    convolution = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


class Thin(nn.Module):
    def __init__(self, num_classes, image_size):
        super().__init__()
        self.stages = nn.ModuleList([stage(3, 16, 1), stage(16, 32, 2), stage(32, 64, 2)])
        self.head = nn.Linear(64, num_classes)

    def forward(self, images):
        features = []
        for one in self.stages:
            images = one(images)
            features.append(images)
        return self.head(images.mean((2, 3))), features


def plain(num_classes, image_size):
    stages = stage(3, 16, 1), stage(16, 32, 2), stage(32, 64, 2)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes)
    return with_feature_maps(nn.Sequential(*stages, *head))


MODELS = {"Thin": Thin, "Plain": plain}
