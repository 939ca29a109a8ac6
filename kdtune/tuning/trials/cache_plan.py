"""Plan of what fits into the cache: teacher targets and augmented views; arithmetic alone."""

from collections.abc import Mapping

from kdtune.log.events import CachePlan
from kdtune.storage.array_cache import PLANNED_CACHE_SHARE, needed_cache_gb
from kdtune.units import BYTES_PER_GB, format_bytes


def plan_cache(
    max_bytes: float,
    image_bytes: int,
    base_bytes: int,
    target_bytes: Mapping[str, Mapping[str, int]],
    any_plain: bool,
    augmentations: int,
    epochs: int,
) -> tuple[CachePlan, list[str]]:
    """Choose what is cached, and explain it in lines for a person.

    These are the targets of as many methods as fit, small ones first, then augmented views.

    Args:
        max_bytes: size of the cache.
        image_bytes: size of the training images.
        base_bytes: size of training and validation images, which are always cached.
        target_bytes: size of each target of a view, by name, by method.
        any_plain: True if some trial does not augment the images.
        augmentations: number of different ones of the trials; each has views of its own.
        epochs: maximum number of views.
    """

    def total_bytes(methods: list[str], views: int) -> int:
        sizes = {name: size for method in methods for name, size in target_bytes[method].items()}
        bytes_per_view = sum(sizes.values())
        view_bytes = augmentations * (image_bytes + bytes_per_view)
        return base_bytes + any_plain * bytes_per_view + views * view_bytes

    max_bytes *= PLANNED_CACHE_SHARE
    cached_methods, lines = list[str](), list[str]()
    fits_view = augmentations > 0 and total_bytes([], 1) <= max_bytes  # at least its pixels
    for method in sorted(target_bytes, key=lambda name: (sum(target_bytes[name].values()), name)):
        needed_bytes = total_bytes([*cached_methods, method], min(1, augmentations))
        if (any_plain or fits_view) and needed_bytes <= max_bytes:
            cached_methods.append(method)
        else:
            sizes = (f"{k} {format_bytes(size)}" for k, size in target_bytes[method].items())
            lines.append(
                f"{method}: the teacher runs live: with {' + '.join(sizes)} of a view the cache "
                f"takes {format_bytes(needed_bytes)}, and there is room for "
                f"{format_bytes(max_bytes)}; cache_gb {needed_cache_gb(needed_bytes)} is enough"
            )
    views = 0
    if fits_view:
        view_bytes = total_bytes(cached_methods, 1) - total_bytes(cached_methods, 0)
        views = min(epochs, 1 + int((max_bytes - total_bytes(cached_methods, 1)) // view_bytes))
        needed_gb = needed_cache_gb(total_bytes(cached_methods, epochs))
        advice = f"; cache_gb {needed_gb} holds one for each" if views < epochs else ""
        lines.append(f"augmented views: {epochs} epochs cycle through {views}{advice}")
    elif augmentations:
        needed_gb = needed_cache_gb(total_bytes([], 1))
        lines.append(f"augmented anew in every epoch; cache_gb {needed_gb} holds a view of images")
    methods, num_bytes = tuple(cached_methods), total_bytes(cached_methods, views)
    if num_bytes >= BYTES_PER_GB:
        num_views = views * augmentations
        counts = f"{num_views} x {format_bytes(image_bytes)} of augmented views, "
        parts = f"{format_bytes(base_bytes)} of images, {counts if num_views else ''}"
        target_bytes_in_all = num_bytes - base_bytes - num_views * image_bytes
        parts += f"{format_bytes(target_bytes_in_all)} of the teacher's targets"
        lines.insert(0, f"the cache takes {format_bytes(num_bytes)}: {parts}")
    return CachePlan(methods=methods, augment_views=views, num_bytes=num_bytes), lines
