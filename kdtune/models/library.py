"""Classifiers of torchvision and timm by name, which also return a feature map per stage.

Parameter names stay the library's own, so its checkpoints load. The stages of a network whose
maps do not shrink, such as a ViT, end at evenly spaced blocks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torchvision
from torch import Tensor, fx, nn

from kdtune.errors import UserError, did_you_mean, first_line
from kdtune.models.feature_maps import (
    evenly_spaced,
    find_patch_size,
    find_stage_ends,
    keeping_modes,
    map_side,
    require_whole_patches,
    run_on_meta,
    trace_feature_maps,
    with_feature_maps,
)
from kdtune.runtime.optional_imports import import_optional

_OPTIONS = {"aux_logits": False, "init_weights": False, "transform_input": True}
TORCHVISION_OPTIONS = dict.fromkeys(("googlenet", "inception_v3"), _OPTIONS)
"""Options of networks with auxiliary logits; their weights expect that they transform images."""


@dataclass(frozen=True)
class ModelLibrary:
    """A library of classifiers.

    Attributes:
        create: called with (name, number of classes, image size) and rates by the library's names
            of them, returns the library's network.
        rate_names: the library's names of ``drop_rate`` and ``drop_path_rate``.
        add_maps: called with (network, name, image size), returns it with its feature maps.
    """

    name: str
    list_names: Callable[[], list[str]]
    create: Callable[..., nn.Module]
    add_maps: Callable[[nn.Module, str, int], nn.Module]
    rate_names: Mapping[str, str]

    def require(self, name: str) -> None:
        """Raise a `UserError` that names a similar network if there is none of this name."""
        known = self.list_names()
        if name not in known:
            suggestion = did_you_mean(name, known)
            if not suggestion.startswith("did"):
                suggestion = f"its documentation lists {len(known)}"
            raise UserError(f"{self.name} has no model '{name}'; {suggestion}")

    def build(
        self,
        name: str,
        num_classes: int,
        image_size: int,
        layers: Sequence[str] = (),
        rates: Mapping[str, float] | None = None,
    ) -> nn.Module:
        """Build a network with fresh weights from the global random state.

        Args:
            name: one of `list_names`.
            num_classes: K, length of the logits.
            image_size: height and width of the images, in pixels.
            layers: that return the maps; without names, the network's own stages.
            rates: see `kdtune.models.build_model`.
        """
        options = {self.rate_names[key]: rate for key, rate in (rates or {}).items()}
        try:
            network = self.create(name, num_classes, image_size, **options)
            if layers:
                model = with_feature_maps(network, layers)
            else:
                model = self.add_maps(network, name, image_size)
            _, maps = run_on_meta(model, image_size)
            if not maps or 0 in map(map_side, maps):
                raise ValueError("it has no feature maps")
        except UserError:
            raise
        except (RuntimeError, ValueError, AssertionError, AttributeError, TypeError) as error:
            for key in rates or {}:
                if f"keyword argument '{self.rate_names[key]}'" in str(error):
                    raise self._no_rate(name, key) from None
            reason = first_line(error).rstrip(".")
            raise UserError(
                f"{self.name}:{name} cannot be used with images of {image_size} px ({reason}); "
                "use another image size, or another network."
            ) from None
        for key in rates or {}:
            if not _drops(model, key):
                raise self._no_rate(name, key)
        return model

    def _no_rate(self, name: str, key: str) -> UserError:
        return UserError(f"{self.name}:{name} has no {key} that can be set; leave it out.")


def _drops(model: nn.Module, key: str) -> bool:
    """Return True if a network has what a rate is for, in layers that know their mode.

    Some of torchvision ignore a rate. Others call a function with their mode, which is a constant
    once they are traced.
    """
    if isinstance(model, fx.GraphModule):
        if key == "drop_rate" and any("training" in node.kwargs for node in model.graph.nodes):
            return False
        kind = nn.Dropout if key == "drop_rate" else torchvision.ops.StochasticDepth
        return any(isinstance(module, kind) for module in model.modules())
    return True  # timm checks the names of its options


_STAGE_ENDS: dict[str, list[str]] = {}
"""Results of `find_stage_ends`, which takes a second, by the name of the torchvision network."""


def _create_torchvision(name: str, num_classes: int, image_size: int, **rates: float) -> nn.Module:
    options: dict[str, Any] = TORCHVISION_OPTIONS.get(name, {})
    if name.startswith("vit_"):
        options = {"image_size": image_size}
    elif name.startswith("maxvit"):
        options = {"input_size": (image_size, image_size)}
    network: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=num_classes, **options, **rates
    )
    return network


def _add_torchvision_maps(network: nn.Module, name: str, image_size: int) -> nn.Module:
    if name.startswith("vit_"):
        blocks = network.get_submodule("encoder.layers")
        names = [f"encoder.layers.{child}" for child, _ in blocks.named_children()]
        layers = [names[block] for block in evenly_spaced(len(names))]
        return trace_feature_maps(network, layers, image_size)
    if name.startswith("swin_"):
        require_whole_patches(find_patch_size(network), image_size)
        return trace_feature_maps(network, [f"features.{i}" for i in (1, 3, 5, 7)], image_size)
    if name.startswith("maxvit"):  # its maps cannot be found at another image size
        return trace_feature_maps(network, ["stem", *(f"blocks.{i}" for i in range(4))])
    if name not in _STAGE_ENDS:
        _STAGE_ENDS[name] = find_stage_ends(network)
    return trace_feature_maps(network, _STAGE_ENDS[name])


def _create_timm(name: str, num_classes: int, image_size: int, **rates: float) -> nn.Module:
    create_model = import_optional("timm", "timm").create_model
    create = partial(create_model, name, num_classes=num_classes, **rates)
    try:
        network: nn.Module = create(img_size=image_size)
    except TypeError:  # it takes images of any size
        network = create()
    patch_embedding = getattr(network, "patch_embed", None)
    if patch_size := getattr(patch_embedding, "patch_size", None):
        require_whole_patches(patch_size[0], image_size)
    return network


def _forget_biases(network: nn.Module, keys: object) -> None:
    """Empty what LeViT, EfficientFormer and others compute from weights once in eval mode."""
    with keeping_modes(network):
        network.train()


def _add_timm_maps(network: nn.Module, name: str, image_size: int) -> nn.Module:
    # A subclass, since a module around the network would change the names of its parameters.
    timm_class: Any = type(network)
    indices: list[int] | None = None

    def forward(self: Any, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        final_map, maps = self.forward_intermediates(images, indices, output_fmt="NCHW")
        return self.forward_head(final_map), maps

    network.__class__ = type(timm_class.__name__, (timm_class,), {"forward": forward})
    network.register_load_state_dict_post_hook(_forget_biases)  # type: ignore[no-untyped-call]
    sides = [map_side(value) for value in run_on_meta(network, image_size)[1]]
    if len(set(sides)) == 1:
        indices = evenly_spaced(len(sides))
    return network


_list_torchvision = partial(torchvision.models.list_models, module=torchvision.models)
TORCHVISION = ModelLibrary(
    "torchvision",
    _list_torchvision,
    _create_torchvision,
    _add_torchvision_maps,
    {"drop_rate": "dropout", "drop_path_rate": "stochastic_depth_prob"},
)
TIMM = ModelLibrary(
    "timm",
    lambda: import_optional("timm", "timm").list_models(),
    _create_timm,
    _add_timm_maps,
    {"drop_rate": "drop_rate", "drop_path_rate": "drop_path_rate"},
)

LIBRARIES = {library.name: library for library in (TORCHVISION, TIMM)}
"""Libraries by name, the prefix of their models' names, as in ``timm:resnet18``."""
