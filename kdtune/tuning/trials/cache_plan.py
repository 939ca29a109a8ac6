"""How much of a sweep's views fits into the cache. Arithmetic alone; nothing is built here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from kdtune.units import BYTES_PER_GB, format_bytes

PLANNED_CACHE_SHARE = 0.95
"""Share of the cache that is planned with, so that a sweep does not push out what it needs."""


@dataclass(frozen=True)
class CachePlan:
    """What a sweep keeps.

    Attributes:
        methods: whose targets are kept; the teacher runs live for the others.
        views: augmented views that epochs take turns with; 0 where each epoch has its own, live.
        bytes: size of all of it.
        lines: how that follows, for people.
    """

    methods: tuple[str, ...]
    views: int
    bytes: int
    lines: tuple[str, ...]


def plan_cache(
    max_bytes: float,
    image_bytes: int,
    base_bytes: int,
    target_bytes: Mapping[str, Mapping[str, int]],
    any_plain: bool,
    any_augmented: bool,
    epochs: int,
) -> CachePlan:
    """Choose what is kept: targets of as many methods as fit, small ones first, then views.

    Args:
        limit: bytes that the cache may have.
        images: bytes of the training images.
        held: bytes of what is kept in any case, the training images among it.
        targets: bytes of each target of a view, by name, by method.
        plain: whether some trial sees the images as they are.
        augmented: whether some trial augments them.
        epochs: more views than these are not needed.
    """

    def total_bytes(methods: list[str], views: int) -> int:
        sizes = {name: size for method in methods for name, size in target_bytes[method].items()}
        bytes_per_view = sum(sizes.values())
        return base_bytes + any_plain * bytes_per_view + views * (image_bytes + bytes_per_view)

    max_bytes *= PLANNED_CACHE_SHARE
    min_views, cached_methods = int(any_augmented), list[str]()
    if total_bytes([], min_views) > max_bytes:
        min_views = 0  # not even the pixels of one augmented view
    lines = []
    for method in sorted(target_bytes, key=lambda name: (sum(target_bytes[name].values()), name)):
        needed_bytes = total_bytes([*cached_methods, method], int(any_augmented))
        if (any_plain or min_views) and needed_bytes <= max_bytes:
            cached_methods.append(method)
        else:
            parts = " + ".join(
                f"{k} {format_bytes(size)}" for k, size in target_bytes[method].items()
            )
            lines.append(
                f"{method}: the teacher runs live, since {parts} of a view make "
                f"{format_bytes(needed_bytes)} in all, and there is room for {format_bytes(max_bytes)}; "
                f"cache_gb {_needed_cache_gb(needed_bytes)} would do"
            )
    views = 0
    if min_views:
        view_bytes = total_bytes(cached_methods, 1) - total_bytes(cached_methods, 0)
        views = min(epochs, 1 + int((max_bytes - total_bytes(cached_methods, 1)) // view_bytes))
        hint = f"; cache_gb {_needed_cache_gb(total_bytes(cached_methods, epochs))} holds one for each"
        line = f"augmented views: {views}, in turns, for {epochs} epochs"
        lines.append(line + (hint if views < epochs else ""))
    elif any_augmented:
        needed_gb = _needed_cache_gb(total_bytes([], 1))
        lines.append(
            f"augmented anew in every epoch; cache_gb {needed_gb} would hold a view of images"
        )
    return CachePlan(
        tuple(cached_methods), views, total_bytes(cached_methods, views), tuple(lines)
    )


def _needed_cache_gb(size: int) -> str:
    """The least cache_gb that has room for so many bytes."""
    return f"{math.ceil(1000 * size / PLANNED_CACHE_SHARE / BYTES_PER_GB) / 1000:g}"
