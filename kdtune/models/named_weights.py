"""Fit of weights to a network with a name: their number of classes and the image size."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from kdtune.config.train import TrainConfig
from kdtune.errors import UserError
from kdtune.models import MODELS, build_model
from kdtune.models.state_dicts import describe_other_names

COMMON_IMAGE_SIZES = (
    32, 64, 96, 112, 128, 160, 192, 224, 240, 256, 288, 299, 320, 336, 384, 448, 512, 518,
)  # fmt: skip
"""Sizes, in pixels, at which a network is built whose weights do not fit the images at hand."""

DEFAULT_IMAGE_SIZE: int = TrainConfig.model_fields["image_size"].default
_BUILT_CLASSES = 2  # whatever K is: a head of another size shows it


class Fit(NamedTuple):
    """A network that weights fit.

    Attributes:
        image_size: in pixels; None if the weights fit the size that was asked for, or the default.
    """

    num_classes: int
    image_size: int | None


def build_weights(name: str, image_size: int | None) -> dict[str, Tensor]:
    """Return the `state_dict` of a fresh network, maybe without values.

    Args:
        name: of the network, see `kdtune.models.build_model`.
        image_size: in pixels, if the network can be built for it; None takes any.
    """
    return next(_builds(name, image_size))[1]


def fit_network(name: str, weights: Mapping[str, Tensor], image_size: int | None) -> Fit:
    """Return the number of classes and image size of weights; a `ValueError` if they do not fit.

    Args:
        name: of the network, see `kdtune.models.build_model`.
        weights: a `state_dict`.
        image_size: in pixels; None takes any that fits.
    """
    difference = None
    for size, expected in _builds(name, image_size):
        if problem := describe_other_names(expected, weights):
            raise ValueError(problem)
        shapes = {key: (expected[key].shape, weights[key].shape) for key in weights}
        different = {key: both for key, both in shapes.items() if both[0] != both[1]}
        lengths = {loaded[0] for _, loaded in different.values() if loaded} or {_BUILT_CLASSES}
        is_head = all(
            own[1:] == loaded[1:] and own[:1] == (_BUILT_CLASSES,)
            for own, loaded in different.values()
        )
        if not is_head or len(lengths) > 1:
            key, (own, loaded) = next(iter(different.items()))
            difference = difference or f"{key} is {list(loaded)}, not {list(own)}"
            continue
        [num_classes] = lengths
        if size == (image_size or DEFAULT_IMAGE_SIZE):
            return Fit(num_classes, None)
        if image_size is None:
            return Fit(num_classes, size)
        raise ValueError(f"its weights are for images of {size} px; give --image-size {size}")
    raise ValueError(difference)


def _builds(name: str, image_size: int | None) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield image sizes, the one that is wanted first, with a network's weights at that size."""
    sizes = dict.fromkeys((image_size or DEFAULT_IMAGE_SIZE, *COMMON_IMAGE_SIZES))
    refusals: list[UserError] = []
    for size in sizes:
        # Shapes suffice, but the code of a plug-in may not know the meta device.
        with torch.device("cpu" if name in MODELS else "meta"):
            try:
                weights = build_model(name, _BUILT_CLASSES, size).state_dict()
            except UserError as error:
                refusals.append(error)
                continue
        yield size, weights
    if len(refusals) == len(sizes):
        raise refusals[0]
