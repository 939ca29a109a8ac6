"""Classifiers of torchvision and timm by name, with a map a stage beside their logits.

Parameter names stay the library's own, so its checkpoints load. A network is as its library has
it, at any image size: images under 64 px get no smaller stem here, and leave little of the last
maps. What has no maps that get smaller from stage to stage (transformers) is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn

from kdtune.errors import UserError, did_you_mean, first_line
from kdtune.runtime.optional_imports import import_optional

PROBE_IMAGE_SIZE = 256
"""Pixels of the image with which stages are found: the last map is larger than a mean."""


@dataclass(frozen=True)
class ModelLibrary:
    """Where classifiers come from.

    Attributes:
        names: of all that it has.
        build: builds one, with fresh weights, for so many classes; it gives (logits, maps).
    """

    list_names: Callable[[], list[str]]
    build: Callable[[str, int], nn.Module]


def require_library_model(library: str, name: str) -> None:
    """Raise a `UserError` that names the nearest known one if the library has no such network."""
    known = LIBRARIES[library].list_names()
    if name not in known:
        suggestion = did_you_mean(name, known)
        hint = (
            suggestion if suggestion.startswith("did") else f"its documentation lists {len(known)}"
        )
        raise UserError(f"{library} has no model '{name}'; {hint}")


def build_library_model(library: str, name: str, num_classes: int, image_size: int) -> nn.Module:
    """Build a network with fresh weights from the global random state.

    Args:
        library: a key of `LIBRARIES`.
        name: of `Library.names`.
        num_classes: K, length of the logits.
        image_size: height and width of the images, in pixels.

    Raises:
        UserError: it cannot be had, or gives no maps that get smaller, at this image size.
    """
    require_library_model(library, name)
    try:
        model = LIBRARIES[library].build(name, num_classes)
        if (library, name, image_size) not in _USABLE_MODELS:
            _, maps = _run_on_meta(model, image_size)
            sides = [_map_side(a) for a in maps]
            if 0 in sides or sides != sorted(sides, reverse=True) or sides[0] == sides[-1]:
                raise ValueError("it has no maps that get smaller from stage to stage")
            _USABLE_MODELS.add((library, name, image_size))
    except (RuntimeError, ValueError, AssertionError, AttributeError, TypeError) as error:
        reason = first_line(error).rstrip(".")
        raise UserError(
            f"{library}:{name} cannot be used with images of {image_size} px ({reason}); take "
            "another image size, or a convolutional network."
        ) from None
    return model


_USABLE_MODELS: set[tuple[str, str, int]] = set()
"""What was found to work: library, name, image size."""

_STAGE_ENDS: dict[str, list[str]] = {}
"""Where stages of torchvision's networks end, by their name."""


def _run_on_meta(model: nn.Module, image_size: int) -> Any:
    """What a network gives for two images in eval mode, in shapes alone: nothing is computed."""
    weights = {key: value.to("meta") for key, value in model.state_dict().items()}
    images = torch.zeros(2, 3, image_size, image_size, device="meta")
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            return torch.func.functional_call(model.eval(), weights, (images,))
    finally:
        for module, mode in modes:
            module.training = mode


def _map_side(value: Any) -> int:
    """Height and width of a square map, [B, C, S, S]; 0 of what is none."""
    square = isinstance(value, Tensor) and value.dim() == 4 and value.shape[2] == value.shape[3]
    return value.shape[2] if square else 0


def find_stage_ends(network: nn.Module) -> list[str]:
    """Find the modules that give the last map before each down-sampling, and the final map.

    What lies inside a module that itself halves the map, or that ends without one, is no stage's
    end: the first convolutions of a down-sampling block, squeeze-and-excitation, a head.

    Args:
        network: takes images of any size.

    Returns:
        Their names, first to last.
    """
    map_sides: list[tuple[str, int, int]] = []

    def make_hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            is_map = not isinstance(module, nn.AdaptiveAvgPool2d)
            map_sides.append(
                (name, _map_side(inputs[0]) if inputs else 0, _map_side(output) if is_map else 0)
            )

        return hook

    hooks = [
        module.register_forward_hook(make_hook(name))
        for name, module in network.named_modules()
        if name
    ]
    try:
        _run_on_meta(network, PROBE_IMAGE_SIZE)
    finally:
        for hook in hooks:
            hook.remove()
    inner_prefixes = tuple(
        f"{name}." for name, before, after in map_sides if _is_downsampling(before, after)
    )
    ends: list[tuple[str, int]] = []
    for name, _, side in map_sides:
        if side > 1 and not name.startswith(inner_prefixes):
            if ends and not _is_downsampling(ends[-1][1], side):  # still the same stage
                ends.pop()
            ends.append((name, side))
    return [name for name, _ in ends]


def _is_downsampling(before: int, after: int) -> bool:
    """Whether a map is halved, to within its edges, or is one no more."""
    return after <= 1 or 1.5 * after <= before <= 3 * after


class _TorchvisionTracer(fx.Tracer):
    """Takes torchvision's layers for what they are, whatever they do inside."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_torchvision_op = m.__module__.startswith("torchvision.ops")
        return is_torchvision_op or super().is_leaf_module(m, module_qualified_name)


TORCHVISION_OPTIONS = {
    name: {"aux_logits": False, "init_weights": False, "transform_input": True}
    for name in ("googlenet", "inception_v3")
}
"""Of networks with further logits. Their weights want images that were not normalised as the
others', so they change the images themselves."""


def with_feature_maps(network: nn.Module, map_modules: list[str] | None = None) -> nn.Module:
    """A classifier that gives its maps beside its logits; names of its parameters stay.

    Args:
        network: gives logits [B, K] for images of any size, in steps that torch.fx can trace.
        points: modules that give the maps; those of `stage_ends` if None.
    """
    if map_modules is None:
        map_modules = find_stage_ends(network)
    graph = _TorchvisionTracer().trace(network)
    node_by_module: dict[str, fx.Node] = {}
    for node in graph.nodes:
        node_by_module |= dict.fromkeys(node.meta.get("nn_module_stack", ()), node)
    *_, output = graph.nodes
    output.args = ((output.args[0], [node_by_module[name] for name in map_modules]),)
    return fx.GraphModule(network, graph, class_name=type(network).__name__)


def _build_torchvision(name: str, num_classes: int) -> nn.Module:
    network = torchvision.models.get_model(
        name, weights=None, num_classes=num_classes, **TORCHVISION_OPTIONS.get(name, {})
    )
    if name not in _STAGE_ENDS:
        _STAGE_ENDS[name] = find_stage_ends(network)
    return with_feature_maps(network, _STAGE_ENDS[name])


def _list_torchvision() -> list[str]:
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


class _WithFeatureMaps:
    """Gives the maps of timm's networks, too."""

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        final, maps = self.forward_intermediates(images)  # type: ignore[attr-defined]
        return self.forward_head(final), maps  # type: ignore[attr-defined]


def _build_timm(name: str, num_classes: int) -> nn.Module:
    network: nn.Module = import_optional("timm", "timm").create_model(
        name, num_classes=num_classes
    )
    network_class = type(network)
    # Another class of the same parts: a network around it would change their names.
    network.__class__ = type(network_class.__name__, (_WithFeatureMaps, network_class), {})
    return network


def _list_timm() -> list[str]:
    names: list[str] = import_optional("timm", "timm").list_models()
    return names


LIBRARIES = {
    "torchvision": ModelLibrary(_list_torchvision, _build_torchvision),
    "timm": ModelLibrary(_list_timm, _build_timm),
}
"""Libraries by the word before the colon."""
