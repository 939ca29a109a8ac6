"""Classifiers of torchvision and timm by name, which also return a feature map per stage.

Parameter names stay the library's own, so its checkpoints load. Networks whose maps do not get
smaller from stage to stage (transformers) are refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn

from kdtune.errors import UserError, did_you_mean, first_line
from kdtune.runtime.optional_imports import import_optional

PROBE_IMAGE_SIZE = 256
"""Pixels of the image that finds the stages; large enough that the last map is not 1×1."""

TORCHVISION_OPTIONS = {
    name: {"aux_logits": False, "init_weights": False, "transform_input": True}
    for name in ("googlenet", "inception_v3")
}
"""Options of networks with auxiliary logits; their weights expect that they transform images."""


@dataclass(frozen=True)
class ModelLibrary:
    """A library of classifiers.

    Attributes:
        name: prefix of its models' names.
        build_network: builds a network of (name, number of classes) that returns (logits, maps).
    """

    name: str
    list_names: Callable[[], list[str]]
    build_network: Callable[[str, int], nn.Module]

    def require(self, name: str) -> None:
        """Raise a `UserError` that names a similar network if there is none of this name."""
        known = self.list_names()
        if name not in known:
            suggestion = did_you_mean(name, known)
            if not suggestion.startswith("did"):
                suggestion = f"its documentation lists {len(known)}"
            raise UserError(f"{self.name} has no model '{name}'; {suggestion}")

    def build(self, name: str, num_classes: int, image_size: int) -> nn.Module:
        """Build a network with fresh weights from the global random state.

        Args:
            name: one of `list_names`.
            num_classes: K, length of the logits.
            image_size: height and width of the images, in pixels.
        """
        try:
            model = self.build_network(name, num_classes)
            _, maps = _run_on_meta(model, image_size)
            sides = [_map_side(a) for a in maps]
            if 0 in sides or sides != sorted(sides, reverse=True) or sides[0] == sides[-1]:
                raise ValueError("it has no maps that get smaller from stage to stage")
        except (RuntimeError, ValueError, AssertionError, AttributeError, TypeError) as error:
            reason = first_line(error).rstrip(".")
            raise UserError(
                f"{self.name}:{name} cannot be used with images of {image_size} px ({reason}); "
                "take another image size, or a convolutional network."
            ) from None
        return model


def _run_on_meta(model: nn.Module, image_size: int) -> Any:
    """Return a network's outputs in eval mode on the meta device, which computes shapes only."""
    weights = {key: value.to("meta") for key, value in model.state_dict().items()}
    images = torch.zeros(2, 3, image_size, image_size, device="meta")
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            return torch.func.functional_call(model.eval(), weights, (images,))
    finally:
        for module, mode in modes:
            module.training = mode


def _map_side(value: object) -> int:
    """Return the side S of a square map [B, C, S, S]; 0 for anything else."""
    if isinstance(value, Tensor) and value.dim() == 4 and value.shape[2] == value.shape[3]:
        return value.shape[2]
    return 0


def find_stage_ends(network: nn.Module) -> list[str]:
    """Return the modules that return the last map before each downsampling, or the final map.

    Modules inside a block that halves the map as a whole, or whose output is no map, end no
    stage: the first convolutions of a downsampling block, squeeze-and-excitation, a head.
    """
    map_sides: list[tuple[str, int, int]] = []

    def record_sides(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        side = 0 if isinstance(module, nn.AdaptiveAvgPool2d) else _map_side(output)
        map_sides.append((name, _map_side(inputs[0]) if inputs else 0, side))

    modules = [(name, module) for name, module in network.named_modules() if name]
    hooks = [module.register_forward_hook(partial(record_sides, name)) for name, module in modules]
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


def _is_downsampling(side_before: int, side_after: int) -> bool:
    """Return True if a map is about halved, or is no map afterwards."""
    return side_after <= 1 or 1.5 * side_after <= side_before <= 3 * side_after


class _TorchvisionTracer(fx.Tracer):
    """A tracer that does not look into torchvision's layers, which branch on their mode."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_torchvision_op = m.__module__.startswith("torchvision.ops")
        return is_torchvision_op or super().is_leaf_module(m, module_qualified_name)


def with_feature_maps(network: nn.Module, map_modules: list[str] | None = None) -> nn.Module:
    """Return a network that returns (logits, maps) and keeps the names of its parameters.

    Args:
        network: returns logits [B, K] for images of any size, in steps that torch.fx can trace.
        map_modules: modules that return the maps; None takes those of `find_stage_ends`.
    """
    map_modules = find_stage_ends(network) if map_modules is None else map_modules
    graph = _TorchvisionTracer().trace(network)
    last_nodes: dict[str, fx.Node] = {}
    for node in graph.nodes:
        last_nodes |= dict.fromkeys(node.meta.get("nn_module_stack", ()), node)
    *_, output = graph.nodes
    output.args = ((output.args[0], [last_nodes[name] for name in map_modules]),)
    return fx.GraphModule(network, graph, class_name=type(network).__name__)


_STAGE_ENDS: dict[str, list[str]] = {}
"""Results of `find_stage_ends`, which takes a second, by the name of the torchvision network."""


def _build_torchvision(name: str, num_classes: int) -> nn.Module:
    options = {"weights": None, "num_classes": num_classes, **TORCHVISION_OPTIONS.get(name, {})}
    network = torchvision.models.get_model(name, **options)
    if name not in _STAGE_ENDS:
        _STAGE_ENDS[name] = find_stage_ends(network)
    return with_feature_maps(network, _STAGE_ENDS[name])


def _build_timm(name: str, num_classes: int) -> nn.Module:
    timm = import_optional("timm", "timm")
    network: nn.Module = timm.create_model(name, num_classes=num_classes)

    def forward(self: Any, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        final_map, maps = self.forward_intermediates(images)
        return self.forward_head(final_map), maps

    # A subclass, since a module around the network would change the names of its parameters.
    timm_class = type(network)
    network.__class__ = type(timm_class.__name__, (timm_class,), {"forward": forward})
    return network


_list_torchvision = partial(torchvision.models.list_models, module=torchvision.models)
TORCHVISION = ModelLibrary("torchvision", _list_torchvision, _build_torchvision)
TIMM = ModelLibrary("timm", lambda: import_optional("timm", "timm").list_models(), _build_timm)

LIBRARIES = {library.name: library for library in (TORCHVISION, TIMM)}
"""Libraries by name, the prefix of their models' names, as in ``timm:resnet18``."""
