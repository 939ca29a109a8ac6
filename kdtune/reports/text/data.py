"""The overview of a data set as text."""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from kdtune.reports.text.render import render_table

MAX_CLASSES = 50
"""Largest number of classes with a row of their own in a terminal."""


def data_text(overview: Mapping[str, Any], output_format: str) -> str:
    """Return the overview of a data set as text.

    Args:
        overview: as `kdtune.data.overview.inspect_images` returns it.
        output_format: ``table``, ``markdown`` or, with all of it, ``json``.
    """
    if output_format == "json":
        return json.dumps(overview, indent=2) + "\n"
    classes = pd.DataFrame(overview["classes"])
    shown = classes.head(MAX_CLASSES)
    lines = [*overview["lines"], "", render_table(shown, output_format).rstrip()]
    if len(shown) < len(classes):
        lines.append(f"and {len(classes) - len(shown):,} more classes: --format json")
    lines += ["", *_describe_images(overview)]
    return "\n".join(lines) + "\n"


def _describe_images(overview: Mapping[str, Any]) -> list[str]:
    lines = []
    if sizes := overview["sizes"]:
        sides = (
            f"{side} {sizes[side]['smallest']} to {sizes[side]['largest']} px (median "
            f"{sizes[side]['median']})"
            for side in ("width", "height")
        )
        width, height = sizes["commonest"]
        lines.append(
            f"sizes: {', '.join(sides)}; most often {width} x {height} "
            f"({sizes['commonest_images']:,} images)"
        )
    kinds = (f"{kind} ({count:,})" for kind, count in overview["kinds"].items())
    lines.append(f"formats and modes: {', '.join(kinds) or 'none'}")
    if any(" I" in kind for kind in overview["kinds"]):
        lines.append(f"16-bit images use {overview['bit_depth']} bits")
    unreadable, count = overview["unreadable"], overview["duplicate_count"]
    lines.append(f"unreadable images: {len(unreadable):,}")
    lines += [f"  {image['file']}: {image['reason']}" for image in unreadable[:20]]
    lines.append(f"images of one content in several splits or classes: {count:,}")
    for images in overview["duplicates"]:
        places = (f"{image['file']} ({image['split']}, {image['class']})" for image in images[:4])
        lines.append(f"  {' = '.join(places)}")
    return lines
