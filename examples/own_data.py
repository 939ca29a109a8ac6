r"""A plug-in with a data set: images in memory, and their splits.

    kdtune sweep --plugin own_data.py --data stripes --image-size 8 --methods student \
        --no-baselines --models MultiBranchNet --trials 1 --epochs 1 --name own-data

Images are uint8 arrays ([H, W], or [H, W, C] with C of 1, 3 or 4), or paths of files below `root`,
which is --data-root.
`kdtune.data.datasets.samples_of` returns images and labels of a torchvision data set. A missing
validation or test split is taken from train.
"""

import numpy as np

from kdtune.data.datasets import NamedDataset


def _samples(count, seed):
    random = np.random.default_rng(seed)
    labels = [i % 4 for i in range(count)]
    return [_stripes(label, random) for label in labels], labels


def _stripes(label, random):
    """Draw lines in one of four directions, with noise."""
    y, x = np.mgrid[:8, :8]
    across = (x, y, x + y, x - y)[label] + random.integers(4)
    return (160 * (across % 4 < 2) + random.integers(0, 96, (8, 8))).astype(np.uint8)


def stripes(name, root):
    classes = ("upright", "level", "rising", "falling")
    return NamedDataset(classes, root, train=_samples(800, 0), test=_samples(200, 1))


DATA = {"stripes": stripes}
