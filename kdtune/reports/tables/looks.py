"""Looks at a confirmation that grows, and the rate of false alarms that each of them may spend.

Who looks at 5 seeds, then at 10, then at 20 has three chances of a false alarm. So the rate is
spent over the looks (Lan & DeMets 1983, Biometrika 70), by a function of Pocock's type, and the
intervals hold for all looks together (Jennison & Turnbull 2000, Group Sequential Methods, ch. 9).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import norm

from kdtune.log.events import Cell, ConfirmStarted, Event, RunTested, SeedsAdded
from kdtune.reports.tables.statistics import MIN_SEEDS, SIGNIFICANCE_LEVEL, Estimate, estimate_mean

SCHEDULE = (3, 5, 10, 20)
"""Numbers of seeds of the planned looks, from the first look on."""

LAST_LOOK = SCHEDULE[-1]

_GRID_POINTS = 200
_LEAST_SPENDING = 1e-9  # below it a boundary is far in the tail


def looks_by_cell(confirm_events: Iterable[Event]) -> dict[Cell, tuple[int, ...]]:
    """Return the looks at each cell: the numbers of seeds at which its runs were tested."""
    seeds, added, looks = 0, dict[Cell, int](), dict[Cell, tuple[int, ...]]()
    for event in confirm_events:
        match event:
            case ConfirmStarted():
                seeds = max(seeds, event.seeds)
            case SeedsAdded():
                added |= {cell: max(added.get(cell, 0), event.seeds) for cell in event.cells}
            case RunTested() if now := max(seeds, added.get(event.cell, 0)):
                earlier = looks.get(event.cell, ())
                looks[event.cell] = (*(look for look in earlier if look < now), now)
    return looks


def estimate_at_looks(
    points: Mapping[int, np.ndarray],
    looks: Sequence[int],
    variance_search: float = 0.0,
    groups: Sequence[object] | None = None,
) -> list[Estimate]:
    """Return the estimates of the looks that count, each with its level, in their order.

    Args:
        points: by seed, see `kdtune.reports.tables.statistics.estimate_mean`, [n] each.
        looks: numbers of seeds; without them test was read once, and will not be read again.
        variance_search: see `Estimate`.
        groups: see `kdtune.reports.tables.statistics.estimate_mean`.
    """
    seeds = sorted(points)
    at_looks = [[seed for seed in seeds if seed <= look] for look in looks] or [seeds]
    estimates = [
        estimate_mean(np.stack([points[seed] for seed in some], axis=1), variance_search, groups)
        for some in at_looks
        if len(some) >= MIN_SEEDS
    ]
    return spend_levels(estimates) if looks else estimates


def later_looks(looks: Sequence[int]) -> int:
    """Return the number of planned looks after those so far."""
    return sum(seeds > looks[-1] for seeds in SCHEDULE)


def spend_levels(
    estimates: Sequence[Estimate], level: float = SIGNIFICANCE_LEVEL
) -> list[Estimate]:
    """Return the estimates of the looks, each with the level that it may spend.

    The first look fixes how much is spent up to any number of seeds: level · ln(1 + (e − 1) · t),
    where t is the share of the information of the last planned look. A look that adds no
    information, or comes after the last planned one, has nothing to spend and is left out: the
    result of the look before stands.

    Args:
        estimates: of all looks, in their order, each from its first seeds.
        level: rate of false alarms over all looks.
    """
    looked: list[Estimate] = []
    spent = 0.0
    for estimate in estimates:
        share = _information_share(estimates[0], estimate.seeds)
        spending = level * math.log(1 + (math.e - 1) * share) - spent
        if spending > _LEAST_SPENDING:
            looked.append(replace(estimate, level=_nominal_level(looked, estimate, spending)))
            spent += spending
    return looked


def _information_share(first: Estimate, seeds: int) -> float:
    """Return the information of so many seeds over that of the last planned look, at most 1."""
    last_look = max(LAST_LOOK, first.seeds)
    return first.with_seeds(last_look).variance / first.with_seeds(min(seeds, last_look)).variance


def _nominal_level(earlier: Sequence[Estimate], estimate: Estimate, spending: float) -> float:
    """Return the level at which a look that was reached undecided has this rate of false alarms.

    The statistics of the looks have correlation √(I_i / I_j), I: information by the parts of the
    variance of the present estimate. Their joint density is integrated look by look.
    """
    if not earlier:
        return spending
    looks = [*earlier, estimate]
    variances = np.array([estimate.with_seeds(look.seeds).variance for look in looks])
    correlations = np.sqrt(variances[1:] / variances[:-1])
    points, masses = np.zeros(1), np.ones(1)
    for look, correlation in zip(earlier, [0.0, *correlations[:-1]], strict=True):
        limit = norm.isf(look.level / 2)
        edges = np.linspace(-limit, limit, _GRID_POINTS + 1)
        masses = np.diff(_conditional_cdf(edges, points, correlation), axis=1).T @ masses
        points = (edges[1:] + edges[:-1]) / 2

    def excess(limit: float) -> float:
        below, above = _conditional_cdf(np.array([-limit, limit]), points, correlations[-1]).T
        return float(masses @ (below + 1 - above)) - spending

    return float(2 * norm.sf(brentq(excess, 0, 10)))


def _conditional_cdf(values: np.ndarray, given: np.ndarray, correlation: float) -> np.ndarray:
    """Return P(Z ≤ value | earlier Z), [given, values]; both are standard normal."""
    sd = max(math.sqrt(1 - correlation**2), 1e-6)
    return np.asarray(ndtr((values - correlation * given[:, None]) / sd))
