"""How much of a sweep's views fits into the cache. Arithmetic alone; nothing is built here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from kdtune.cache import GB

ROOM = 0.95
"""Share of the cache that is planned with, so that a sweep does not push out what it needs."""


@dataclass(frozen=True)
class Budget:
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


def plan_views(
    limit: float,
    images: int,
    held: int,
    targets: Mapping[str, Mapping[str, int]],
    plain: bool,
    augmented: bool,
    epochs: int,
) -> Budget:
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

    def cost(methods: list[str], views: int) -> int:
        union = {name: size for method in methods for name, size in targets[method].items()}
        of_view = sum(union.values())
        return held + plain * of_view + views * (images + of_view)

    limit *= ROOM
    least, kept = int(augmented), list[str]()
    if cost([], least) > limit:
        least = 0  # not even the pixels of one augmented view
    lines = []
    for method in sorted(targets, key=lambda name: (sum(targets[name].values()), name)):
        wanted = cost([*kept, method], least)
        if (plain or least) and wanted <= limit:
            kept.append(method)
        elif augmented and not plain and not least:
            lines.append(f"{method}: the teacher runs live, on images augmented in every epoch")
        else:
            names = {k: v for k, v in targets[method].items() if v}
            parts = " + ".join(f"{name} {size / GB:.2f} GB" for name, size in names.items())
            lines.append(
                f"{method}: the teacher runs live, since {parts} a view make {wanted / GB:.2f} GB "
                f"in all, and there is room for {limit / GB:.2f} GB"
            )
    views = 0
    if least:
        one = cost(kept, 1) - cost(kept, 0)
        views = min(epochs, 1 + int((limit - cost(kept, 1)) // one))
        times = "" if views == epochs else f"; each is seen in {epochs / views:.1f} of them"
        full = math.ceil((cost(kept, 0) + epochs * one) / ROOM / GB)
        more = "" if views == epochs else f" (cache_gb {full} would hold one an epoch)"
        lines.append(f"augmented: {views} views for {epochs} epochs{times}{more}")
    return Budget(tuple(kept), views, cost(kept, views), tuple(lines))
