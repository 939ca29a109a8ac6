"""Method against method on what was confirmed: one row a pair and student, and one over all."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import pearsonr

from kdtune.config.sweep import BASELINES
from kdtune.log.events import Cell
from kdtune.reports.tables.sentences import advise, in_points, name_of, sentence
from kdtune.reports.tables.statistics import (
    LEAST_SEEDS,
    MIN_DIFFERENCE,
    Estimate,
    decide,
    estimate,
    holm,
    images_needed,
    limited_by,
    more_seeds,
)

COMPARISON = [
    "method_a",
    "method_b",
    "model",
    "models",
    "seeds",
    "test_images",
    "difference_points",
    "half_width_points",
    "low_points",
    "high_points",
    "half_width_without_search_points",
    "p_value",
    "p_value_holm",
    "df",
    "se_seeds_points",
    "se_images_points",
    "se_search_points",
    "seeds_won_a",
    "seed_correlation",
    "limited_by",
    "more_seeds",
    "test_images_needed",
    "min_difference_points",
    "verdict",
    "sentence",
]

ALL = "all"
"""Stands for the mean over the models, in the column ``model``."""


@dataclass(frozen=True)
class Confirmed:
    """A cell's chosen configuration on the test images.

    Attributes:
        right: whether each test image was classified rightly, bool [n], by seed; of the seeds
            that finished.
        seeds: how many were run, those that did not finish included.
        diverged: how many of them diverged.
        luck: search luck of the cell, in points.
        late_gain: of its search, in points; see `kdtune.reports.tables.statistics.late_gain`.
    """

    right: Mapping[int, np.ndarray]
    seeds: int
    diverged: int
    luck: float
    late_gain: float = math.nan


def pairs_of(methods: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs that are compared: methods in their order, then all against each baseline.

    >>> pairs_of(["at", "fitnets", "kd", "student"])[:3]
    [('at', 'fitnets'), ('at', 'student'), ('fitnets', 'student')]
    """
    own = [method for method in methods if method not in BASELINES]
    against = [(m, b) for b in reversed(BASELINES) if b in methods for m in methods if m != b]
    seen = [*combinations(own, 2), *against]
    return [pair for i, pair in enumerate(seen) if pair[::-1] not in seen[:i]]


def comparison_table(
    cells: Mapping[Cell, Confirmed],
    groups: Sequence[object] | None = None,
    min_difference: float = MIN_DIFFERENCE,
) -> pd.DataFrame:
    """One row a pair of methods and model, and one for all models of the pair if there are more.

    Args:
        cells: every cell of the sweep, in its order; one that was not confirmed has no `right`.
        groups: of each test image; see `kdtune.reports.tables.statistics.estimate`.
        min_difference: points below which a difference does not matter.

    Columns:
        method_a, method_b, model: who is compared; the model ``all`` is the mean over the models.
        models: 1, or how many are averaged.
        seeds: those that both sides finished, on all models averaged.
        test_images: count.
        difference_points, half_width_points, low_points, high_points: A minus B, and its 95 %
            interval, which counts seeds, test images and search luck.
        half_width_without_search_points: the same for these two tuned configurations.
        p_value, p_value_holm: two-sided; adjusted over the models of the pair (for ``all`` alike).
        df: Hillis' degrees of freedom.
        se_seeds_points, se_images_points, se_search_points: roots of the parts of the variance.
        seeds_won_a: seeds in which A is better.
        seed_correlation: of the accuracies of A and B by seed; for information.
        limited_by: the largest part: ``seeds``, ``images`` or ``search``.
        more_seeds, test_images_needed: what would probably settle it; empty if that would not.
        min_difference_points: points below which a difference does not matter.
        verdict: ``not_confirmed``, ``unstable``, ``better_a``, ``better_b``, ``leaning_a``,
            ``leaning_b``, ``equal``, ``unclear``, and for ``all`` also ``depends``.
        sentence: the verdict in words.
    """
    methods = list(dict.fromkeys(method for method, _ in cells))
    rows: list[dict[str, object]] = []
    for a, b in pairs_of(methods):
        models = [m for method, m in cells if method == a and (b, m) in cells]
        alone = [_Match((a, b), (model,), cells, groups, min_difference) for model in models]
        p_values = holm([match.found.p_value for match in alone if match.found])
        adjusted = iter(p_values.tolist())
        below = [
            match.row(next(adjusted) if match.found else np.nan, len(p_values)) for match in alone
        ]
        rows += below
        if len(models) > 1:
            together = _Match((a, b), tuple(models), cells, groups, min_difference)
            rows.append(together.row_of_all(below))
    table = pd.DataFrame(rows, columns=COMPARISON)
    whole = ["seeds", "test_images", "seeds_won_a", "more_seeds", "test_images_needed"]
    return table.astype(dict.fromkeys(whole, "Int64"))


def first_pair(comparison: pd.DataFrame) -> pd.DataFrame:
    """The rows of the pair that the sweep is about, that of all models first.

    Args:
        comparison: as `comparison_table` makes it.
    """
    if comparison.empty:
        return comparison
    first = comparison.iloc[0]
    own = comparison[
        (comparison["method_a"] == first["method_a"])
        & (comparison["method_b"] == first["method_b"])
    ]
    return own.sort_values("models", ascending=False, kind="stable", ignore_index=True)


@dataclass(frozen=True)
class _Match:
    """Method A against method B on one model, or on several together."""

    methods: tuple[str, str]
    models: tuple[str, ...]
    cells: Mapping[Cell, Confirmed]
    groups: Sequence[object] | None
    min_difference: float

    @cached_property
    def sides(self) -> list[tuple[Cell, Confirmed]]:
        keys = [(method, model) for model in self.models for method in self.methods]
        return [(key, self.cells[key]) for key in keys]

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds that all sides have finished."""
        return sorted(set.intersection(*(set(side.right) for _, side in self.sides)))

    @cached_property
    def found(self) -> Estimate | None:
        """A minus B; None if too few seeds are shared."""
        if len(self.seeds) < LEAST_SEEDS:
            return None
        luck = sum(side.luck**2 for _, side in self.sides) / len(self.models) ** 2
        a, b = map(self._points, self.methods)
        return estimate(a - b, luck, self.groups)

    def _points(self, method: str) -> np.ndarray:
        """Points of a method [n, S], mean over the models."""
        of_models = [
            np.stack([self.cells[method, model].right[seed] for seed in self.seeds], axis=1)
            for model in self.models
        ]
        return 100 * np.mean(of_models, axis=0)

    def row(self, p_value_holm: float, checked: int) -> dict[str, object]:
        """The row of a single model, of so many that are checked."""
        [model] = self.models
        if self._undecided:
            return self._row(model, *self._undecided, p_value_holm)
        found = self._found
        verdict = decide(found, p_value_holm, self.min_difference)
        won = found.seeds_lost if verdict == "better_b" else found.seeds_won
        said = self._say(verdict, model, checked, f"{won} of {found.seeds} seeds")
        return self._row(model, verdict, said, p_value_holm)

    def row_of_all(self, alone: Sequence[dict[str, object]]) -> dict[str, object]:
        """The row of all models together; `alone` are those of each."""
        if self._undecided:
            p_value = self.found.p_value if self.found is not None else np.nan
            return self._row(ALL, *self._undecided, p_value)
        a, b = (
            [str(row["model"]) for row in alone if row["verdict"] == f"better_{side}"]
            for side in "ab"
        )
        p_value = self._found.p_value
        if a and b:
            first, second = map(name_of, self.methods)
            said = (
                f"It depends on the student: {first} is better on {', '.join(a)}, {second} on "
                f"{', '.join(b)}."
            )
            return self._row(ALL, "depends", said, p_value)
        verdict = decide(self._found, p_value, self.min_difference)
        better, worse = (b, a) if verdict == "better_b" else (a, b)
        undecided = len(alone) - len(better) - len(worse)
        counted = f"better on {len(better)}, worse on {len(worse)}, undecided on {undecided}"
        return self._row(ALL, verdict, self._say(verdict, None, len(alone), counted), p_value)

    @property
    def _found(self) -> Estimate:
        assert self.found is not None
        return self.found

    @cached_property
    def _undecided(self) -> tuple[str, str] | None:
        """Verdict and sentence where no winner can be declared whatever the numbers are."""
        fallen = [(cell, side) for cell, side in self.sides if side.diverged]
        names = tuple(map(name_of, self.methods))
        # With too few seeds nothing is said, unless that is because all diverged.
        if fallen and (self.found is not None or any(not side.right for _, side in fallen)):
            said = "; ".join(
                f"{name_of(method)} diverged in {side.diverged} of {side.seeds} seeds on {model}"
                for (method, model), side in fallen
            )
            if self.found is not None:
                width = self.found.half_width
                said += (
                    f"; in the runs that finished {names[0]} minus {names[1]} is "
                    f"{in_points(self.found.mean, width)} ± {in_points(width, width)} points"
                )
            return "unstable", f"{said}. No winner is declared."
        if self.found is not None:
            return None
        failed = [cell for cell, side in self.sides if side.seeds and not side.right]
        if failed:
            listed = ", ".join(f"{name_of(method)} on {model}" for method, model in failed)
            return "not_confirmed", f"Not confirmed: no run of {listed} was tested."
        lacking = {model for (_, model), side in self.sides if not side.right}
        listed = ", ".join(model for model in self.models if model in lacking)
        if listed:
            has = "has" if len(lacking) == 1 else "have"
            return "not_confirmed", (
                f"Not confirmed: {listed} {has} search scores only. Such scores are too high by "
                "0.3 to 3 points and name a winner by chance; run `kdtune confirm`."
            )
        return "not_confirmed", (
            f"Not confirmed: {' and '.join(names)} share {len(self.seeds)} finished seeds on "
            f"{', '.join(self.models)}, and {LEAST_SEEDS} are needed; run `kdtune confirm` with "
            "more --seeds."
        )

    def _say(self, verdict: str, model: str | None, models: int, counted: str) -> str:
        advice = advise(self._found, self._images, self.min_difference)
        return sentence(
            verdict,
            self.methods,
            model,
            models,
            self._found,
            advice,
            counted,
            self.min_difference,
        )

    @property
    def _images(self) -> int:
        """Test images."""
        return len(next(iter(self.sides[0][1].right.values())))

    def _row(self, model: str, verdict: str, said: str, p_value_holm: float) -> dict[str, object]:
        row: dict[str, object] = {
            "method_a": self.methods[0],
            "method_b": self.methods[1],
            "model": model,
            "models": len(self.models),
            "seeds": len(self.seeds),
            "min_difference_points": self.min_difference,
            "verdict": verdict,
            "sentence": said,
        }
        if self.found is None:
            return row
        found = self.found
        row |= {
            "test_images": self._images,
            "difference_points": found.mean,
            "half_width_points": found.half_width,
            "low_points": found.low,
            "high_points": found.high,
            "half_width_without_search_points": replace(found, v_search=0.0).half_width,
            "p_value": found.p_value,
            "p_value_holm": p_value_holm,
            "df": found.df,
            "se_seeds_points": math.sqrt(found.v_seeds),
            "se_images_points": math.sqrt(found.v_images),
            "se_search_points": math.sqrt(found.v_search),
            "seeds_won_a": found.seeds_won,
            "seed_correlation": self._correlation(),
            "limited_by": limited_by(found),
        }
        if verdict == "unclear" or verdict.startswith("leaning"):
            row["more_seeds"] = more_seeds(found, self.min_difference)
            row["test_images_needed"] = images_needed(found, self._images, self.min_difference)
        return row

    def _correlation(self) -> float:
        a, b = (self._points(method).mean(axis=0) for method in self.methods)
        return float(pearsonr(a, b).statistic) if np.ptp(a) and np.ptp(b) else np.nan
