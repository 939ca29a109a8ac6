"""The student to ship: the best on validation, and all that test does not show to be worse.

Mean validation accuracy chooses the best, so that the test images choose nothing. They say which
others are worse than it by more than the smallest difference that matters: simultaneous one-sided
comparisons with the best (Hsu 1984, Annals of Statistics 12) by Holm's method, over seeds and test
images alone, since the students are fixed and no search is repeated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from kdtune.config.sweep import MIN_DIFFERENCE
from kdtune.errors import UserError, did_you_mean
from kdtune.log.events import Cell
from kdtune.reports.tables import statistics
from kdtune.reports.tables.advice import limited_by
from kdtune.reports.tables.columns import SHIP
from kdtune.reports.tables.comparison import CellResult, shared_looks
from kdtune.reports.tables.looks import estimate_at_looks
from kdtune.reports.tables.statistics import Estimate

SHIP_VIEW = (
    "in_ship_set", "validation_accuracy_percent", "test_accuracy_percent", "behind_best_points",
    "behind_best_high_points", "parameters", "macs", "latency_ms",
)  # fmt: skip
"""Columns of the table as it is shown, after the name of the student."""

IN_SET = ("best", "yes", "unknown")
"""Values of the column ``in_ship_set`` of students that are not shown to be worse."""


@dataclass(frozen=True)
class ShipLimits:
    """Limits of the students that are candidates; None is no limit.

    Attributes:
        max_latency_ms: of one image, on the device that measured it.
        model: the only student that is a candidate.
    """

    max_parameters: int | None = None
    max_latency_ms: float | None = None
    model: str | None = None

    def select(self, cells: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of a leaderboard within the limits; a `UserError` if there are none."""
        if self.model is not None:
            models = list(dict.fromkeys(cells["model"]))
            if self.model not in models:
                known = did_you_mean(self.model, models)
                raise UserError(f"No cell has the model '{self.model}'; {known}")
            cells = cells[cells["model"] == self.model]
        costs = {
            "parameters": (self.max_parameters, "has at most {:,} parameters", "{:,}"),
            "latency_ms": (self.max_latency_ms, "takes at most {:g} ms", "{:.3g} ms"),
        }
        for column, (limit, wanted, lowest) in costs.items():
            if limit is not None:
                measured = cells.dropna(subset=column)
                if measured.empty:
                    problem = "The costs of the students are not measured yet"
                    raise UserError(f"{problem}; `kdtune confirm` measures them.")
                cells = measured[measured[column] <= limit]
                if cells.empty:
                    least = measured.loc[measured[column].astype(float).idxmin()]
                    text = f"the least is {lowest.format(least[column])}, of {least['model']}"
                    raise UserError(f"No student {wanted.format(limit)}; {text}.")
        return cells

    def describe(self) -> str:
        """Return the limits as text; empty if there are none."""
        limits = {
            "the student {}": self.model,
            "at most {:,} parameters": self.max_parameters,
            "at most {:g} ms for one image": self.max_latency_ms,
        }
        return ", ".join(text.format(v) for text, v in limits.items() if v is not None)


NO_LIMITS = ShipLimits()


def ship_table(
    leaderboard: pd.DataFrame,
    cell_results: Mapping[Cell, CellResult],
    groups: Sequence[object] | None = None,
    min_difference: float = MIN_DIFFERENCE,
    limits: ShipLimits = NO_LIMITS,
) -> pd.DataFrame:
    """Return `SHIP`: the candidates, compared with the best of them on validation.

    Args:
        leaderboard: the table `LEADERBOARD`.
        cell_results: all cells in the order of the sweep.
        groups: see `kdtune.reports.tables.statistics.estimate_mean`.
        min_difference: smallest difference that matters, in points.
        limits: what a candidate may cost.
    """
    by_cell = leaderboard.set_index(["method", "model"], drop=False)
    # A leaderboard has the order of test, which would decide between equals on validation.
    cells = by_cell.loc[list(cell_results)].dropna(subset="search_best_percent")
    within = limits.select(cells)
    is_confirmed = within["status"] == "ok"
    score = "validation_accuracy_percent" if is_confirmed.any() else "search_best_percent"
    candidates = within[is_confirmed] if is_confirmed.any() else within
    # Means of the same accuracies may differ in the last digit; of equals the smallest is best.
    order = candidates.assign(score=-candidates[score].round(9))
    ranked = order.sort_values(["score", "parameters"], kind="stable").index.tolist()
    columns: dict[Cell, dict[str, object]] = {
        cell: {"validation_rank": rank, "in_ship_set": "unknown"}
        for rank, cell in enumerate(ranked, start=1)
    }
    if is_confirmed.any():
        compared = compare_with_best(ranked, cell_results, groups, min_difference)
        columns = {cell: columns[cell] | compared.get(cell, {}) for cell in ranked}
    rows = cells.assign(min_difference_points=min_difference).to_dict("index")
    others = [cell for cell in rows if cell not in columns]
    return SHIP.make_frame({**rows[cell], **columns.get(cell, {})} for cell in [*columns, *others])


def select_ship_set(ship: pd.DataFrame) -> pd.DataFrame:
    """Return the best student and those not shown to be worse; none if there is no best yet."""
    is_known = (ship["in_ship_set"] == "best").any()
    return ship[ship["in_ship_set"].isin(IN_SET) & is_known]


def differences_to_best(
    ranked: Sequence[Cell],
    cell_results: Mapping[Cell, CellResult],
    groups: Sequence[object] | None,
) -> dict[Cell, Estimate]:
    """Return the best cell minus each other one that shares enough tested seeds with it.

    Args:
        ranked: cells, the best on validation first.
        cell_results: of these cells.
        groups: see `kdtune.reports.tables.statistics.estimate_mean`.
    """
    best, differences = cell_results[ranked[0]], {}
    for cell in ranked[1:]:
        other = cell_results[cell]
        ours, theirs = best.image_scores, other.image_scores
        seeds = ours.keys() & theirs.keys()
        points = {seed: 100.0 * ours[seed] - 100.0 * theirs[seed] for seed in seeds}
        looks = shared_looks([best, other])
        if estimates := estimate_at_looks(points, looks, groups=groups):
            differences[cell] = estimates[-1]
    return differences


def compare_with_best(
    ranked: Sequence[Cell],
    cell_results: Mapping[Cell, CellResult],
    groups: Sequence[object] | None = None,
    min_difference: float = MIN_DIFFERENCE,
) -> dict[Cell, dict[str, object]]:
    """Return the columns of `SHIP` about the comparisons, of all cells that can be compared.

    Args:
        ranked: cells, the best on validation first.
        cell_results: of these cells.
        groups: see `kdtune.reports.tables.statistics.estimate_mean`.
        min_difference: smallest difference that matters, in points.
    """
    columns: dict[Cell, dict[str, object]] = {ranked[0]: {"in_ship_set": "best"}}
    differences = differences_to_best(ranked, cell_results, groups)
    p_values = [_p_value_above(estimate, min_difference) for estimate in differences.values()]
    levels = [estimate.level for estimate in differences.values()]
    adjusted = statistics.adjust_holm(p_values, levels)
    for (cell, estimate), p_value in zip(differences.items(), adjusted, strict=True):
        one_sided = replace(estimate, level=2 * estimate.level / len(differences))
        columns[cell] = {
            "in_ship_set": "no" if p_value < estimate.level else "yes",
            "behind_best_points": estimate.mean,
            "behind_best_high_points": one_sided.high,
            "p_value_holm": p_value,
            "independent_images": estimate.images,
            "limited_by": limited_by(estimate),
        }
    return columns


def _p_value_above(estimate: Estimate, limit: float) -> float:
    """Return the one-sided p-value of a mean of at most `limit`."""
    shifted = replace(estimate, mean=estimate.mean - limit)
    return shifted.p_value / 2 if shifted.mean > 0 else 1 - shifted.p_value / 2
