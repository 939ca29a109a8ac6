"""Comparison of methods on their confirmed runs, per model and over all models."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import pearsonr

from kdtune.config.sweep import BASELINES, MIN_DIFFERENCE
from kdtune.log.events import Cell
from kdtune.reports.tables.columns import COMPARISON
from kdtune.reports.tables.sentences import (
    advise_next_step,
    describe_verdict,
    display_name,
    format_interval,
)
from kdtune.reports.tables.statistics import (
    MIN_SEEDS,
    Estimate,
    Verdict,
    adjust_holm,
    decide_verdict,
    estimate_mean,
    limited_by,
    more_seeds_needed,
    needed_test_images,
)

ALL_MODELS = "all"
"""The mean over the models, in the column ``model``."""

_Decision = tuple[Verdict, str]
"""A verdict, and its sentence."""


@dataclass(frozen=True)
class CellResult:
    """Test results of the chosen configuration of a cell.

    Attributes:
        correct: by finished seed, which test images were classified correctly, bool [n].
        seeds_run: number of seeds, also of those that did not finish.
        seeds_diverged: number of seeds that diverged.
        search_luck: search luck of the cell, in points.
        late_gain: late gain of its search, in points.
    """

    correct: Mapping[int, np.ndarray]
    seeds_run: int
    seeds_diverged: int
    search_luck: float
    late_gain: float = math.nan


def method_pairs(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs that are compared: methods in their order, then all against each baseline.

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
    """Return `COMPARISON`: every pair of methods on each model, and over all models.

    Args:
        cell_results: all cells in the order of the sweep; `correct` is empty if not confirmed.
        groups: see `kdtune.reports.tables.statistics.estimate_mean`.
        min_difference: smallest difference that matters, in points.
    """
    rows: list[dict[str, object]] = []
    inputs = cell_results, groups, min_difference
    for pair in method_pairs(list(dict.fromkeys(method for method, _ in cell_results))):
        a, b = pair
        models = [m for method, m in cell_results if method == a and (b, m) in cell_results]
        comparisons = [_PairComparison(pair, (model,), *inputs) for model in models]
        p_values = [c.difference.p_value for c in comparisons if c.difference]
        adjusted = iter(adjust_holm(p_values).tolist())
        model_rows = [
            c.model_row(next(adjusted) if c.difference else np.nan, len(p_values))
            for c in comparisons
        ]
        rows += model_rows
        if len(models) > 1:
            rows.append(_PairComparison(pair, tuple(models), *inputs).overall_row(model_rows))
    return COMPARISON.make_frame(rows)


def select_main_pair(comparison: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the first pair of methods, that of all models first."""
    if comparison.empty:
        return comparison
    pairs = comparison[["method_a", "method_b"]]
    pair_rows = comparison[(pairs == pairs.iloc[0]).all(axis=1)]
    return pair_rows.sort_values("models", ascending=False, kind="stable", ignore_index=True)


@dataclass(frozen=True)
class _PairComparison:
    """Method A against method B on one model, or on the mean over several."""

    methods: tuple[str, str]
    models: tuple[str, ...]
    cell_results: Mapping[Cell, CellResult]
    groups: Sequence[object] | None
    min_difference: float

    @cached_property
    def sides(self) -> dict[Cell, CellResult]:
        cells = [(method, model) for model in self.models for method in self.methods]
        return {cell: self.cell_results[cell] for cell in cells}

    @cached_property
    def seeds(self) -> list[int]:
        """Seeds that all cells have finished."""
        return sorted(set.intersection(*(set(side.correct) for side in self.sides.values())))

    @cached_property
    def difference(self) -> Estimate | None:
        """A minus B; None if too few seeds are shared."""
        if len(self.seeds) < MIN_SEEDS:
            return None
        luck = sum(side.search_luck**2 for side in self.sides.values()) / len(self.models) ** 2
        a, b = map(self._mean_points, self.methods)
        return estimate_mean(a - b, luck, self.groups)

    def _mean_points(self, method: str) -> np.ndarray:
        """Return the points [n, S] of a method, mean over the models."""
        by_model = [
            np.stack(
                [self.cell_results[method, model].correct[seed] for seed in self.seeds], axis=1
            )
            for model in self.models
        ]
        return np.asarray(100 * np.mean(by_model, axis=0))

    @property
    def test_images(self) -> int:
        return len(self.sides[self.methods[0], self.models[0]].correct[self.seeds[0]])

    def model_row(self, p_value_holm: float, models_checked: int) -> dict[str, object]:
        """Return the row of a single model.

        Args:
            p_value_holm: adjusted p-value; NaN without a difference.
            models_checked: models of the pair that have a difference.
        """
        [model] = self.models
        decision = self._decide_without_winner()
        if decision is None:
            difference = self._known_difference
            verdict = decide_verdict(difference, p_value_holm, self.min_difference)
            won = difference.seeds_lost if verdict == Verdict.BETTER_B else difference.seeds_won
            win_counts = f"{won} of {difference.seeds} seeds"
            decision = verdict, self._describe(verdict, model, models_checked, win_counts)
        return self._make_row(model, decision, p_value_holm)

    def overall_row(self, model_rows: Sequence[Mapping[str, object]]) -> dict[str, object]:
        """Return the row of all models together; `model_rows` are those of each."""
        p_value = self.difference.p_value if self.difference else np.nan
        decision = self._decide_without_winner() or self._decide_overall(model_rows)
        return self._make_row(ALL_MODELS, decision, p_value)

    def _decide_overall(self, model_rows: Sequence[Mapping[str, object]]) -> _Decision:
        a_better, b_better = (
            [str(row["model"]) for row in model_rows if row["verdict"] == verdict]
            for verdict in (Verdict.BETTER_A, Verdict.BETTER_B)
        )
        if a_better and b_better:
            a, b = map(display_name, self.methods)
            return Verdict.DEPENDS, (
                f"It depends on the student: {a} is better on {', '.join(a_better)}, {b} on "
                f"{', '.join(b_better)}."
            )
        difference = self._known_difference
        verdict = decide_verdict(difference, difference.p_value, self.min_difference)
        better, worse = len(a_better), len(b_better)
        if verdict == Verdict.BETTER_B:
            better, worse = worse, better
        undecided = len(model_rows) - better - worse
        win_counts = f"better on {better}, worse on {worse}, undecided on {undecided}"
        return verdict, self._describe(verdict, None, len(model_rows), win_counts)

    @property
    def _known_difference(self) -> Estimate:
        assert self.difference is not None
        return self.difference

    def _decide_without_winner(self) -> _Decision | None:
        """Return the decision if no winner can be declared; None if the difference decides."""
        diverged = {cell: side for cell, side in self.sides.items() if side.seeds_diverged}
        # With too few seeds divergence counts only if all seeds of a cell diverged.
        if diverged and (self.difference or any(not s.correct for s in diverged.values())):
            return Verdict.UNSTABLE, self._describe_divergence(diverged)
        return None if self.difference else (Verdict.NOT_CONFIRMED, self._describe_missing_runs())

    def _describe_divergence(self, diverged: Mapping[Cell, CellResult]) -> str:
        text = "; ".join(
            f"{display_name(method)} diverged in {side.seeds_diverged} of {side.seeds_run} seeds "
            f"on {model}"
            for (method, model), side in diverged.items()
        )
        if self.difference:
            a, b = map(display_name, self.methods)
            interval = format_interval(self.difference.mean, self.difference.half_width)
            text += f"; in the runs that finished {a} minus {b} is {interval} points"
        return f"{text}. No winner is declared."

    def _describe_missing_runs(self) -> str:
        failed = [cell for cell, side in self.sides.items() if side.seeds_run and not side.correct]
        if failed:
            listed = ", ".join(f"{display_name(method)} on {model}" for method, model in failed)
            return f"Not confirmed: no run of {listed} was tested."
        unconfirmed = dict.fromkeys(m for (_, m), side in self.sides.items() if not side.correct)
        if unconfirmed:
            verb = "has" if len(unconfirmed) == 1 else "have"
            return (
                f"Not confirmed: {', '.join(unconfirmed)} {verb} search scores only. Such scores "
                "are too high by 0.3 to 3 points and name a winner by chance; run "
                "`kdtune confirm`."
            )
        return (
            f"Not confirmed: {' and '.join(map(display_name, self.methods))} share "
            f"{len(self.seeds)} finished seeds on {', '.join(self.models)}, and {MIN_SEEDS} are "
            "needed; run `kdtune confirm` with more --seeds."
        )

    def _describe(self, verdict: Verdict, model: str | None, models: int, win_counts: str) -> str:
        difference = self._known_difference
        advice = advise_next_step(difference, self.test_images, self.min_difference)
        return describe_verdict(
            verdict, self.methods, model, models, difference, advice, win_counts,
            self.min_difference,
        )  # fmt: skip

    def _make_row(self, model: str, decision: _Decision, p_value_holm: float) -> dict[str, object]:
        verdict, sentence = decision
        row: dict[str, object] = {
            "method_a": self.methods[0],
            "method_b": self.methods[1],
            "model": model,
            "models": len(self.models),
            "seeds": len(self.seeds),
            "min_difference_points": self.min_difference,
            "verdict": verdict,
            "sentence": sentence,
        }
        difference = self.difference
        if difference is None:
            return row
        row |= {
            "test_images": self.test_images,
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
        if verdict in (Verdict.UNCLEAR, Verdict.LEANING_A, Verdict.LEANING_B):
            row["more_seeds"] = more_seeds_needed(difference, self.min_difference)
            row["test_images_needed"] = needed_test_images(
                difference, self.test_images, self.min_difference
            )
        return row

    def _seed_correlation(self) -> float:
        a, b = (self._mean_points(method).mean(axis=0) for method in self.methods)
        return float(pearsonr(a, b).statistic) if np.ptp(a) and np.ptp(b) else np.nan
