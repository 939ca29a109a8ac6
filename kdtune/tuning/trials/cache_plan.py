"""How much of a sweep's views fits into the cache. Arithmetic alone; nothing is built here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from kdtune.units import GB, amount

ROOM = 0.95
"""Share of the cache that is planned with, so that a sweep does not push out what it needs."""


@dataclass(frozen=True)
class Kept:
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
) -> Kept:
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
        wanted = cost([*kept, method], int(augmented))
        if (plain or least) and wanted <= limit:
            kept.append(method)
        else:
            parts = " + ".join(f"{k} {amount(size)}" for k, size in targets[method].items())
            lines.append(
                f"{method}: the teacher runs live, since {parts} of a view make "
                f"{amount(wanted)} in all, and there is room for {amount(limit)}; "
                f"cache_gb {_enough(wanted)} would do"
            )
    views = 0
    if least:
        one = cost(kept, 1) - cost(kept, 0)
        views = min(epochs, 1 + int((limit - cost(kept, 1)) // one))
        more = f"; cache_gb {_enough(cost(kept, epochs))} holds one for each"
        turns = f"augmented views: {views}, in turns, for {epochs} epochs"
        lines.append(turns + (more if views < epochs else ""))
    elif augmented:
        need = _enough(cost([], 1))
        lines.append(f"augmented anew in every epoch; cache_gb {need} would hold a view of images")
    return Kept(tuple(kept), views, cost(kept, views), tuple(lines))


def _enough(size: int) -> str:
    """The least cache_gb that has room for so many bytes."""
    return f"{math.ceil(1000 * size / ROOM / GB) / 1000:g}"
