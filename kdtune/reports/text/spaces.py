"""Search spaces as text: those of modules and, with the weights of strengths, those of a sweep."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from optuna import distributions as ranges

from kdtune.config.strengths import STRENGTHS
from kdtune.log.distributions import parse_distributions
from kdtune.log.folder import SweepSnapshot
from kdtune.reports.tables.columns import LOSS_SCALES
from kdtune.reports.tables.log_tables import loss_scales_table
from kdtune.reports.text.render import render_columns

STRENGTH_MEANING = (
    "strength: weight · term / classification loss, both of the untrained student; the weight "
    "follows from it"
)


def space_lines(
    distributions: Mapping[str, ranges.BaseDistribution],
    constants: Mapping[str, Any],
    is_function: bool,
    start_points: Iterable[Mapping[str, Any]],
) -> Iterator[str]:
    """Yield the lines that show a space.

    Args:
        distributions: ranges of the searched settings.
        constants: fixed settings.
        is_function: True for a space in define-by-run form.
        start_points: points tried first.
    """
    yield from (f"  {key:<16}{_describe_range(d)}" for key, d in distributions.items())
    yield from (f"  {key:<16}{value}" for key, value in constants.items())
    if is_function:
        yield "  conditional: see the function in the file"
    yield from (f"  start           {point}" for point in start_points)
    if STRENGTHS.keys() & (distributions.keys() | constants.keys()):
        yield ""
        yield f"  {STRENGTH_MEANING}"


def _describe_range(distribution: ranges.BaseDistribution) -> str:
    if isinstance(distribution, ranges.CategoricalDistribution):
        return f"one of {', '.join(map(str, distribution.choices))}"
    assert isinstance(distribution, ranges.FloatDistribution | ranges.IntDistribution)
    scale = ", log scale" if distribution.log else ""
    return f"{distribution.low:g} to {distribution.high:g}{scale}"


def sweep_spaces_text(path: Path) -> str:
    """Return the spaces of a sweep's folder, and its strengths as weights in each cell."""
    folder = SweepSnapshot(path)
    spaces = folder.load_opening_events()[-1].spaces
    texts = []
    for method, space in spaces.items():
        distributions = parse_distributions(space.distributions)
        shown = space_lines(distributions, space.constants, space.function, space.start)
        texts.append("\n".join([f"{method}  ({space.path})", "", *shown]))
    scales = loss_scales_table(folder.load_events())
    if len(scales):
        texts.append(render_columns(LOSS_SCALES.to_texts(scales, *LOSS_SCALES.names)))
        texts.append("scale: term at weight 1 / classification loss, median over the trials")
    return "\n\n".join(texts) + "\n"
