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
from kdtune.reports.tables.sentences import (
    advise_next_step,
    describe_verdict,
    display_name,
    format_points,
)
from kdtune.reports.tables.statistics import (
    MIN_DIFFERENCE,
    MIN_SEEDS,
    Estimate,
    adjust_holm,
    decide_verdict,
    estimate_mean,
    limited_by,
    more_seeds_needed,
    needed_test_images,
)

COMPARISON_COLUMNS = [
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

ALL_MODELS = "all"
"""Stands for the mean over the models, in the column ``model``."""


@dataclass(frozen=True)
class CellResult:
    """A cell's chosen configuration on the test images.

    Attributes:
        correct: whether each test image was classified rightly, bool [n], by seed; of the seeds
            that finished.
        seeds_run: how many were run, those that did not finish included.
        seeds_diverged: how many of them diverged.
        search_luck: search luck of the cell, in points.
        late_gain: of its search, in points; see `kdtune.reports.tables.statistics.late_gain`.
    """

    correct: Mapping[int, np.ndarray]
    seeds_run: int
    seeds_diverged: int
    search_luck: float
    late_gain: float = math.nan


def method_pairs(methods: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs that are compared: methods in their order, then all against each baseline.

    >>> method_pairs(["at", "fitnets", "kd", "student"])[:3]
    [('at', 'fitnets'), ('at', 'student'), ('fitnets', 'student')]
    """
    distillation_methods = [method for method in methods if method not in BASELINES]
    baseline_pairs = [
        (m, b) for b in reversed(BASELINES) if b in methods for m in methods if m != b
    ]
    ordered_pairs = [*combinations(distillation_methods, 2), *baseline_pairs]
    return [pair for i, pair in enumerate(ordered_pairs) if pair[::-1] not in ordered_pairs[:i]]


def comparison_table(
    cell_results: Mapping[Cell, CellResult],
    groups: Sequence[object] | None = None,
    min_difference: float = MIN_DIFFERENCE,
) -> pd.DataFrame:
    """One row a pair of methods and model, and one for all models of the pair if there are more.

    Args:
        cell_results: every cell of the sweep, in its order; one that was not confirmed has no `correct`.
        groups: of each test image; see `kdtune.reports.tables.statistics.estimate_mean`.
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
    methods = list(dict.fromkeys(method for method, _ in cell_results))
    rows: list[dict[str, object]] = []
    for a, b in method_pairs(methods):
        models = [m for method, m in cell_results if method == a and (b, m) in cell_results]
        model_comparisons = [
            _PairComparison((a, b), (model,), cell_results, groups, min_difference)
            for model in models
        ]
        p_values = adjust_holm(
            [
                comparison.difference.p_value
                for comparison in model_comparisons
                if comparison.difference
            ]
        )
        adjusted = iter(p_values.tolist())
        model_rows = [
            comparison.model_row(
                next(adjusted) if comparison.difference else np.nan, len(p_values)
            )
            for comparison in model_comparisons
        ]
        rows += model_rows
        if len(models) > 1:
            overall = _PairComparison((a, b), tuple(models), cell_results, groups, min_difference)
            rows.append(overall.overall_row(model_rows))
    table = pd.DataFrame(rows, columns=COMPARISON_COLUMNS)
    integer_columns = ["seeds", "test_images", "seeds_won_a", "more_seeds", "test_images_needed"]
    return table.astype(dict.fromkeys(integer_columns, "Int64"))


def select_main_pair(comparison: pd.DataFrame) -> pd.DataFrame:
    """The rows of the pair that the sweep is about, that of all models first.

    Args:
        comparison: as `comparison_table` makes it.
    """
    if comparison.empty:
        return comparison
    first_row = comparison.iloc[0]
    pair_rows = comparison[
        (comparison["method_a"] == first_row["method_a"])
        & (comparison["method_b"] == first_row["method_b"])
    ]
    return pair_rows.sort_values("models", ascending=False, kind="stable", ignore_index=True)


@dataclass(frozen=True)
class _PairComparison:
    """Method A against method B on one model, or on several together."""

    methods: tuple[str, str]
    models: tuple[str, ...]
    cell_results: Mapping[Cell, CellResult]
    groups: Sequence[object] | None
    min_difference: float

    @cached_property
    def sides(self) -> list[tuple[Cell, CellResult]]:
        keys = [(method, model) for model in self.models for method in self.methods]
        return [(key, self.cell_results[key]) for key in keys]

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds that all sides have finished."""
        return sorted(set.intersection(*(set(side.correct) for _, side in self.sides)))

    @cached_property
    def difference(self) -> Estimate | None:
        """A minus B; None if too few seeds are shared."""
        if len(self.seeds) < MIN_SEEDS:
            return None
        luck = sum(side.search_luck**2 for _, side in self.sides) / len(self.models) ** 2
        a, b = map(self._mean_points, self.methods)
        return estimate_mean(a - b, luck, self.groups)

    def _mean_points(self, method: str) -> np.ndarray:
        """Points of a method [n, S], mean over the models."""
        by_model = [
            np.stack(
                [self.cell_results[method, model].correct[seed] for seed in self.seeds], axis=1
            )
            for model in self.models
        ]
        return 100 * np.mean(by_model, axis=0)

    def model_row(self, p_value_holm: float, models_checked: int) -> dict[str, object]:
        """The row of a single model, of so many that are checked."""
        [model] = self.models
        if self._no_winner:
            return self._build_row(model, *self._no_winner, p_value_holm)
        difference = self._known_difference
        verdict = decide_verdict(difference, p_value_holm, self.min_difference)
        seeds_won = difference.seeds_lost if verdict == "better_b" else difference.seeds_won
        text = self._describe(
            verdict, model, models_checked, f"{seeds_won} of {difference.seeds} seeds"
        )
        return self._build_row(model, verdict, text, p_value_holm)

    def overall_row(self, model_rows: Sequence[dict[str, object]]) -> dict[str, object]:
        """The row of all models together; `model_rows` are those of each."""
        if self._no_winner:
            p_value = self.difference.p_value if self.difference is not None else np.nan
            return self._build_row(ALL_MODELS, *self._no_winner, p_value)
        a, b = (
            [str(row["model"]) for row in model_rows if row["verdict"] == f"better_{side}"]
            for side in "ab"
        )
        p_value = self._known_difference.p_value
        if a and b:
            first, second = map(display_name, self.methods)
            text = (
                f"It depends on the student: {first} is better on {', '.join(a)}, {second} on "
                f"{', '.join(b)}."
            )
            return self._build_row(ALL_MODELS, "depends", text, p_value)
        verdict = decide_verdict(self._known_difference, p_value, self.min_difference)
        better, worse = (b, a) if verdict == "better_b" else (a, b)
        undecided = len(model_rows) - len(better) - len(worse)
        win_counts = f"better on {len(better)}, worse on {len(worse)}, undecided on {undecided}"
        return self._build_row(
            ALL_MODELS,
            verdict,
            self._describe(verdict, None, len(model_rows), win_counts),
            p_value,
        )

    @property
    def _known_difference(self) -> Estimate:
        assert self.difference is not None
        return self.difference

    @cached_property
    def _no_winner(self) -> tuple[str, str] | None:
        """Verdict and sentence where no winner can be declared whatever the numbers are."""
        diverged_sides = [(cell, side) for cell, side in self.sides if side.seeds_diverged]
        names = tuple(map(display_name, self.methods))
        # With too few seeds nothing is said, unless that is because all diverged.
        if diverged_sides and (
            self.difference is not None or any(not side.correct for _, side in diverged_sides)
        ):
            text = "; ".join(
                f"{display_name(method)} diverged in {side.seeds_diverged} of {side.seeds_run} seeds on {model}"
                for (method, model), side in diverged_sides
            )
            if self.difference is not None:
                width = self.difference.half_width
                text += (
                    f"; in the runs that finished {names[0]} minus {names[1]} is "
                    f"{format_points(self.difference.mean, width)} ± {format_points(width, width)} points"
                )
            return "unstable", f"{text}. No winner is declared."
        if self.difference is not None:
            return None
        failed_cells = [cell for cell, side in self.sides if side.seeds_run and not side.correct]
        if failed_cells:
            listed = ", ".join(
                f"{display_name(method)} on {model}" for method, model in failed_cells
            )
            return "not_confirmed", f"Not confirmed: no run of {listed} was tested."
        unconfirmed_models = {model for (_, model), side in self.sides if not side.correct}
        listed = ", ".join(model for model in self.models if model in unconfirmed_models)
        if listed:
            verb = "has" if len(unconfirmed_models) == 1 else "have"
            return "not_confirmed", (
                f"Not confirmed: {listed} {verb} search scores only. Such scores are too high by "
                "0.3 to 3 points and name a winner by chance; run `kdtune confirm`."
            )
        return "not_confirmed", (
            f"Not confirmed: {' and '.join(names)} share {len(self.seeds)} finished seeds on "
            f"{', '.join(self.models)}, and {MIN_SEEDS} are needed; run `kdtune confirm` with "
            "more --seeds."
        )

    def _describe(self, verdict: str, model: str | None, models: int, win_counts: str) -> str:
        advice = advise_next_step(self._known_difference, self._test_images, self.min_difference)
        return describe_verdict(
            verdict,
            self.methods,
            model,
            models,
            self._known_difference,
            advice,
            win_counts,
            self.min_difference,
        )

    @property
    def _test_images(self) -> int:
        """Test images."""
        return len(next(iter(self.sides[0][1].correct.values())))

    def _build_row(
        self, model: str, verdict: str, text: str, p_value_holm: float
    ) -> dict[str, object]:
        row: dict[str, object] = {
            "method_a": self.methods[0],
            "method_b": self.methods[1],
            "model": model,
            "models": len(self.models),
            "seeds": len(self.seeds),
            "min_difference_points": self.min_difference,
            "verdict": verdict,
            "sentence": text,
        }
        if self.difference is None:
            return row
        difference = self.difference
        row |= {
            "test_images": self._test_images,
            "difference_points": difference.mean,
            "half_width_points": difference.half_width,
            "low_points": difference.low,
            "high_points": difference.high,
            "half_width_without_search_points": replace(
                difference, variance_search=0.0
            ).half_width,
            "p_value": difference.p_value,
            "p_value_holm": p_value_holm,
            "df": difference.df,
            "se_seeds_points": math.sqrt(difference.variance_seeds),
            "se_images_points": math.sqrt(difference.variance_images),
            "se_search_points": math.sqrt(difference.variance_search),
            "seeds_won_a": difference.seeds_won,
            "seed_correlation": self._seed_correlation(),
            "limited_by": limited_by(difference),
        }
        if verdict == "unclear" or verdict.startswith("leaning"):
            row["more_seeds"] = more_seeds_needed(difference, self.min_difference)
            row["test_images_needed"] = needed_test_images(
                difference, self._test_images, self.min_difference
            )
        return row

    def _seed_correlation(self) -> float:
        a, b = (self._mean_points(method).mean(axis=0) for method in self.methods)
        return float(pearsonr(a, b).statistic) if np.ptp(a) and np.ptp(b) else np.nan
