"""Comparison of methods on their confirmed runs, per model and over all models."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import pearsonr

from kdtune.config.sweep import BASELINES, MIN_DIFFERENCE
from kdtune.log.events import Cell
from kdtune.reports.tables import sentences, statistics
from kdtune.reports.tables.advice import limited_by, next_step_columns
from kdtune.reports.tables.columns import COMPARISON
from kdtune.reports.tables.looks import estimate_at_looks, later_looks
from kdtune.reports.tables.sentences import display_name, list_names
from kdtune.reports.tables.statistics import MIN_SEEDS, Estimate, Verdict

ALL_MODELS = "all"
"""The mean over the models, in the column ``model``."""

_Decision = tuple[Verdict, str]  # and its sentence


@dataclass(frozen=True)
class CellResult:
    """Test results of the chosen configuration of a cell.

    Attributes:
        image_scores: by finished seed, see `kdtune.log.image_scores.score_images`.
        seeds_run: number of seeds, also of those that did not finish.
        trials: number of trials of its search; 0 if unknown.
        looks: numbers of seeds at which test was read, see `kdtune.reports.tables.looks`; without
            them it was read once, and will not be read again.
    """

    image_scores: Mapping[int, np.ndarray]
    seeds_run: int
    seeds_diverged: int
    search_luck: float
    trials: int = 0
    looks: tuple[int, ...] = ()


def shared_looks(results: Iterable[CellResult]) -> list[int]:
    """Return the numbers of seeds at which all of the cells were tested."""
    return sorted(set.intersection(*(set(result.looks) for result in results)))


def method_pairs(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs to compare: methods in their order, then all against each baseline."""
    pairs = [*combinations([method for method in methods if method not in BASELINES], 2)]
    baselines = [baseline for baseline in reversed(BASELINES) if baseline in methods]
    pairs += [(method, b) for b in baselines for method in methods if method != b]
    return [pair for i, pair in enumerate(pairs) if pair[::-1] not in pairs[:i]]


def comparison_table(
    cell_results: Mapping[Cell, CellResult],
    groups: Sequence[object] | None = None,
    min_difference: float = MIN_DIFFERENCE,
) -> pd.DataFrame:
    """Return `COMPARISON`: every pair of methods on each model, and over all models.

    A look that has no false alarms to spend changes nothing: its seeds are left out.

    Args:
        cell_results: all cells in the order of the sweep; `image_scores` is empty if unconfirmed.
        groups: see `kdtune.reports.tables.statistics.estimate_mean`.
        min_difference: smallest difference that matters, in points.
    """
    rows: list[dict[str, object]] = []
    inputs = cell_results, groups, min_difference
    for pair in method_pairs(list(dict.fromkeys(method for method, _ in cell_results))):
        a, b = pair
        models = [m for method, m in cell_results if method == a and (b, m) in cell_results]
        comparisons = [PairComparison(pair, (model,), *inputs) for model in models]
        known = [c.difference for c in comparisons if c.difference]
        p_values, levels = [d.p_value for d in known], [d.level for d in known]
        adjusted = iter(statistics.adjust_holm(p_values, levels).tolist())
        p_holm = [next(adjusted) if c.difference else np.nan for c in comparisons]
        pairs_tested = zip(comparisons, p_holm, strict=True)
        model_rows = [compared.model_row(p, len(known)) for compared, p in pairs_tested]
        rows += model_rows
        if len(models) > 1:
            rows.append(PairComparison(pair, tuple(models), *inputs).overall_row(model_rows))
    return COMPARISON.make_frame(rows)


def select_main_pair(comparison: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the first pair of methods, that of all models first."""
    if comparison.empty:
        return comparison
    pairs = comparison[["method_a", "method_b"]]
    pair_rows = comparison[(pairs == pairs.iloc[0]).all(axis=1)]
    return pair_rows.sort_values("models", ascending=False, kind="stable", ignore_index=True)


@dataclass(frozen=True)
class PairComparison:
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
    def _shared_seeds(self) -> list[int]:
        """Seeds that all cells have finished."""
        return sorted(set.intersection(*(set(side.image_scores) for side in self.sides.values())))

    @cached_property
    def _looked(self) -> list[Estimate]:
        """A minus B at each look that counts; none if too few seeds are shared."""
        if len(self._shared_seeds) < MIN_SEEDS:
            return []
        luck = sum(side.search_luck**2 for side in self.sides.values()) / len(self.models) ** 2
        a, b = (self._mean_points(method, self._shared_seeds) for method in self.methods)
        points = dict(zip(self._shared_seeds, (a - b).T, strict=True))
        return estimate_at_looks(points, self.looks, luck, self.groups)

    @cached_property
    def looks(self) -> list[int]:
        """Numbers of seeds at which all cells were tested."""
        return shared_looks(self.sides.values())

    @property
    def difference(self) -> Estimate | None:
        """A minus B at the latest look; None if too few seeds are shared."""
        return self._looked[-1] if self._looked else None

    @property
    def seeds(self) -> list[int]:
        """The shared seeds of the latest look."""
        return self._shared_seeds[: self.difference.seeds if self.difference else None]

    def _mean_points(self, method: str, seeds: Sequence[int]) -> np.ndarray:
        """Return the points [n, S] of a method, mean over the models."""
        by_cell = [self.cell_results[method, model].image_scores for model in self.models]
        stacks = [np.stack([image_scores[s] for s in seeds], axis=1) for image_scores in by_cell]
        return np.asarray(100 * np.mean(stacks, axis=0))

    @property
    def test_images(self) -> int:
        return len(self.sides[self.methods[0], self.models[0]].image_scores[self.seeds[0]])

    def model_row(self, p_value_holm: float, models_checked: int) -> dict[str, object]:
        """Return the row of a single model.

        Args:
            p_value_holm: its p-value, adjusted over the models of the pair.
            models_checked: number of models of the pair that have a difference.
        """
        [model] = self.models
        if (decision := self._decide_without_winner()) is None:
            difference = self._known_difference
            verdict = statistics.decide_verdict(difference, p_value_holm, self.min_difference)
            decision = verdict, self._describe(verdict, model, models_checked)
        return self._make_row(model, decision, p_value_holm)

    def overall_row(self, model_rows: Sequence[Mapping[str, object]]) -> dict[str, object]:
        """Return the row of all models together; `model_rows` are those of each."""
        p_value = self.difference.p_value if self.difference else np.nan
        decision = self._decide_without_winner() or self._decide_overall(model_rows)
        return self._make_row(ALL_MODELS, decision, p_value)

    def _decide_overall(self, model_rows: Sequence[Mapping[str, object]]) -> _Decision:
        verdicts = {str(row["model"]): row["verdict"] for row in model_rows}
        a_better = [model for model, verdict in verdicts.items() if verdict == Verdict.BETTER_A]
        b_better = [model for model, verdict in verdicts.items() if verdict == Verdict.BETTER_B]
        if a_better and b_better:
            a, b = map(display_name, self.methods)
            on_a, on_b = (list_names(better, "students") for better in (a_better, b_better))
            text = f"{a} is better on {on_a}, {b} on {on_b}."
            return Verdict.DEPENDS, f"It depends on the student: {text}"
        difference = self._known_difference
        verdict = statistics.decide_verdict(difference, difference.p_value, self.min_difference)
        return verdict, self._describe(verdict, None, len(model_rows))

    @property
    def _known_difference(self) -> Estimate:
        assert self.difference is not None
        return self.difference

    def _decide_without_winner(self) -> _Decision | None:
        """Return the decision if no winner can be declared; None if the difference decides."""
        diverged = {cell: side for cell, side in self.sides.items() if side.seeds_diverged}
        # With too few seeds divergence counts only if all seeds of a cell diverged.
        if diverged and (self.difference or any(not s.image_scores for s in diverged.values())):
            return Verdict.UNSTABLE, self._describe_divergence(diverged)
        return None if self.difference else (Verdict.NOT_CONFIRMED, self._describe_missing_runs())

    def _describe_divergence(self, diverged: Mapping[Cell, CellResult]) -> str:
        texts = [
            f"{display_name(method)} diverged in {side.seeds_diverged} of {side.seeds_run} seeds "
            f"on {model}"
            for (method, model), side in diverged.items()
        ]
        text = "; ".join(texts) if len(texts) < 3 else f"Seeds of {len(texts)} cells diverged"
        return f"{text}. No winner is declared."

    def _describe_missing_runs(self) -> str:
        untested = {cell: side for cell, side in self.sides.items() if not side.image_scores}
        if failed := [cell for cell, side in untested.items() if side.seeds_run]:
            names = [f"{display_name(method)} on {model}" for method, model in failed]
            return f"Not confirmed: no run of {list_names(names, 'cells')} was tested."
        if models := list(dict.fromkeys(model for _, model in untested)):
            return (
                f"Not confirmed: {list_names(models, 'students')} "
                f"{'has' if len(models) == 1 else 'have'} search scores only, which name a winner "
                "by chance; run `kdtune confirm`."
            )
        return (
            f"Not confirmed: {' and '.join(map(display_name, self.methods))} share "
            f"{len(self.seeds)} finished seeds on {list_names(self.models, 'students')}, and "
            f"{MIN_SEEDS} are needed; run `kdtune confirm` with more --seeds."
        )

    def _describe(self, verdict: Verdict, model: str | None, models: int) -> str:
        subject = self.methods, model, models, self._known_difference
        return sentences.describe_verdict(verdict, *subject, self.min_difference)

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
        if (difference := self.difference) is None:
            return row
        without_search = replace(difference, variance_search=0.0)
        row |= {
            "look": len(self._looked),
            "looks": len(self._looked) + (later_looks(self.looks) if self.looks else 0),
            "level": difference.level,
            "test_images": self.test_images,
            "difference_points": difference.mean,
            "half_width_points": difference.half_width,
            "low_points": difference.low,
            "high_points": difference.high,
            "half_width_without_search_points": without_search.half_width,
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
            trials = max(side.trials for side in self.sides.values())
            present = difference, self.test_images, trials
            row |= next_step_columns(*present, self.min_difference)
        return row

    def _seed_correlation(self) -> float:
        a, b = (self._mean_points(m, self.seeds).mean(axis=0) for m in self.methods)
        return float(pearsonr(a, b).statistic) if np.ptp(a) and np.ptp(b) else np.nan
