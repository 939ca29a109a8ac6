"""Feature maps of any classifier: it becomes a network that returns logits and a map per stage.

Tokens [B, N, C] of transformers become maps [B, C, H, W] of their patch grid, without class and
register tokens; maps whose channels come last are permuted. Parameters keep their names.
"""

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from kdtune.errors import UserError, did_you_mean

MAX_EQUAL_STAGES = 4
"""Stages of a network whose maps do not shrink, such as a ViT: blocks that are evenly spaced."""


def evenly_spaced(count: int) -> list[int]:
    """Return the indices of the blocks that end a stage, `MAX_EQUAL_STAGES` of them or all.

    >>> evenly_spaced(12), evenly_spaced(2)
    ([2, 5, 8, 11], [0, 1])
    """
    stages = min(count, MAX_EQUAL_STAGES)
    return [(stage + 1) * count // stages - 1 for stage in range(stages)]


@contextmanager
def keeping_modes(model: nn.Module) -> Iterator[None]:
    """Put all modules of a network back into their modes, train or eval, after the block."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def run_on_meta(model: nn.Module, image_size: int) -> Any:
    """Return a network's outputs in eval mode on the meta device, which computes shapes only.

    Args:
        model: the network; its modules stay in their modes.
        image_size: height and width of the two images, in pixels.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]  # also those that are not saved
    weights = {key: value.to("meta") for key, value in tensors}
    images = torch.zeros(2, 3, image_size, image_size, device="meta")
    with keeping_modes(model), torch.no_grad():
        return torch.func.functional_call(model.eval(), weights, (images,))


def map_side(value: object) -> int:
    """Return the side S of a square map [B, C, S, S]; 0 for anything else."""
    if isinstance(value, Tensor) and value.dim() == 4 and value.shape[2] == value.shape[3]:
        return value.shape[2]
    return 0


def to_map(output: Tensor, image_size: int, patch_size: int) -> Tensor:
    """Return a layer's output for square images as a map [B, C, H, W].

    Args:
        output: a map [B, C, H, W] or [B, H, W, C], or tokens [B, N, C], class token first.
        image_size: of the images, in pixels.
        patch_size: of the patches that became tokens, in pixels; 0 if it is not known, or if the
            number of tokens changes: the largest square of tokens is then the grid.

    >>> to_map(torch.zeros(2, 5, 192), 32, 16).shape
    torch.Size([2, 192, 2, 2])
    """
    if output.dim() == 4:
        _, height, width, depth = output.shape
        return output.permute(0, 3, 1, 2) if height == width != depth else output
    if output.dim() != 3:
        raise UserError(
            f"A layer returns {list(output.shape)}, which is neither a map [B, C, H, W] nor "
            "tokens [B, N, C]; name layers that return maps."
        )
    num_tokens = output.shape[1]
    side = image_size // patch_size if patch_size else 0
    if not 0 < side * side <= num_tokens:
        side = math.isqrt(num_tokens)
    patches = output[:, num_tokens - side * side :].transpose(1, 2)
    return torch.unflatten(patches, 2, (side, side))


def find_patch_size(network: nn.Module) -> int:
    """Return the pixels of a patch, by the convolution that embeds patches; 0 if there is none."""
    convolutions = (m for m in network.modules() if isinstance(m, nn.Conv2d))
    first = next(convolutions, None)
    if first is None or first.kernel_size != first.stride or first.stride[0] == 1:
        return 0
    return first.stride[0]


def require_whole_patches(patch_size: int, image_size: int) -> None:
    """Raise a `ValueError` if images do not consist of whole patches.

    Args:
        patch_size: of a network, in pixels.
        image_size: of the images, in pixels.
    """
    if image_size % patch_size:
        raise ValueError(f"it cuts images into patches of {patch_size} px")


def find_stage_ends(network: nn.Module) -> list[str]:
    """Return the modules that return the last map before each downsampling, or the final map.

    Modules inside a block that halves the map as a whole, or whose output is no map, end none.
    """
    map_sides: list[tuple[str, int, int]] = []

    def record_sides(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        side = 0 if isinstance(module, nn.AdaptiveAvgPool2d) else map_side(output)
        map_sides.append((name, map_side(inputs[0]) if inputs else 0, side))

    modules = [(name, module) for name, module in network.named_modules() if name]
    hooks = [module.register_forward_hook(partial(record_sides, name)) for name, module in modules]
    try:
        run_on_meta(network, 256)  # pixels, enough that the last map is not 1×1
    finally:
        for hook in hooks:
            hook.remove()
    blocks = [name for name, before, after in map_sides if _is_downsampling(before, after)]
    inner_prefixes = tuple(f"{name}." for name in blocks)
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


def trace_feature_maps(
    network: nn.Module, layers: Sequence[str], image_size: int | None = None
) -> nn.Module:
    """Return a network, traced by torch.fx, that returns (logits, maps).

    Args:
        network: returns logits [B, K], in steps that torch.fx can trace.
        layers: modules that return the maps.
        image_size: of the images, in pixels, if `to_map` must convert what the layers return.
    """
    graph = _TorchvisionTracer().trace(network)
    last_nodes: dict[str, fx.Node] = {}
    for node in graph.nodes:
        last_nodes |= dict.fromkeys(node.meta.get("nn_module_stack", ()), node)
    *_, output = graph.nodes
    maps = [last_nodes[name] for name in layers]
    if image_size is not None:
        sizes = image_size, find_patch_size(network)
        with graph.inserting_before(output):
            maps = [graph.call_function(to_map, (node, *sizes)) for node in maps]
    output.args = ((output.args[0], maps),)
    return fx.GraphModule(network, graph, class_name=type(network).__name__)


def with_feature_maps(network: nn.Module, layers: Sequence[str] = ()) -> nn.Module:
    """Return a network that returns (logits, maps) and keeps the names of its parameters.

    Args:
        network: returns logits [B, K], or a tuple that begins with them.
        layers: names of the modules, see `torch.nn.Module.named_modules`, whose outputs `to_map`
            turns into the maps, first stage first. Without names they are those of
            `find_stage_ends`; the network must then take images of any size, in steps that
            torch.fx can trace.
    """
    if not layers:
        return trace_feature_maps(network, find_stage_ends(network))
    modules = dict(network.named_modules())
    for layer in layers:
        if layer not in modules or not layer:
            known = did_you_mean(layer, [name for name in modules if name])
            raise UserError(f"A {type(network).__name__} has no layer '{layer}'; {known}")
    for layer in layers:
        modules[layer].register_forward_hook(partial(_record_output, layer))
    # A subclass, since a module around the network would change the names of its parameters.
    own_class, patch_size = type(network), find_patch_size(network)

    def forward(self: Any, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        outputs: dict[str, Tensor] = {}
        _CALL.outputs = outputs
        try:
            logits = _first_tensor(own_class.forward(self, images))
        finally:
            _CALL.outputs = None
        if missing := [layer for layer in layers if layer not in outputs]:
            raise UserError(f"A {own_class.__name__} does not run its layer '{missing[0]}'.")
        size = images.shape[-1]
        return logits, [to_map(outputs[layer], size, patch_size) for layer in layers]

    members = {"forward": forward, "extra_repr": lambda self: f"maps={','.join(layers)}"}
    network.__class__ = type(own_class.__name__, (own_class,), members)
    return network


_CALL = threading.local()
"""Outputs of the layers of the network that this thread runs; a teacher runs in several."""


def _record_output(layer: str, module: nn.Module, inputs: Any, output: Any) -> None:
    if getattr(_CALL, "outputs", None) is not None:
        _CALL.outputs[layer] = _first_tensor(output)


def _first_tensor(output: Any) -> Tensor:
    """Return a tensor: an output itself, its first one, or its ``logits``."""
    if isinstance(output, Mapping):
        output = output.get("logits", next(iter(output.values()), None))
    while isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise UserError(f"A layer returns a {type(output).__name__}, not a tensor.")
    return output
