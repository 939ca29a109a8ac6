"""Rounds of `until_decided`: further trials or seeds for cells that can still change an answer.

Trials are added before any test image is read, to both cells of a pair alike. After a look at the
test images only seeds are added, for the configurations that were chosen. So nothing is chosen by
test images, and the rates of false alarms of the looks hold (`kdtune.reports.tables.looks`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
from scipy.stats import norm

from kdtune.config.sweep import MIN_DIFFERENCE, SweepConfig
from kdtune.log.events import Cell, SeedsAdded, TrialsAdded
from kdtune.log.folder import SweepFolder
from kdtune.reports.tables.comparison import (
    CellResult,
    PairComparison,
    method_pairs,
    select_main_pair,
)
from kdtune.reports.tables.leaderboard import build_sweep_tables
from kdtune.reports.tables.looks import LAST_LOOK, SCHEDULE
from kdtune.reports.tables.ship import compare_with_best, differences_to_best
from kdtune.reports.tables.statistics import Estimate, Verdict, expected_error

MIN_CHANCE = 0.1
"""Chance of an answer below which a cell gets no further seeds."""

OPEN_VERDICTS = (Verdict.UNCLEAR, Verdict.LEANING_A, Verdict.LEANING_B)
"""Verdicts that further seeds can change."""

MAX_TRIALS_FACTOR, TRIALS_STEP = 3, 1.25
"""Most trials of a cell, as a multiple of those planned; the step in which more are considered."""


@dataclass(frozen=True)
class Question:
    """A comparison that an answer needs.

    Attributes:
        name: the two that are compared.
        cells: those that further seeds would go to.
        difference: the first minus the second, at the present look.
        is_open: False once the present look has answered it.
        margin: None for which of two is better; for a student to ship, the points by which it
            has to be worse than the best to be left out.
    """

    name: str
    cells: tuple[Cell, ...]
    difference: Estimate
    is_open: bool
    margin: float | None = None

    def chance_of_answer(self, seeds: int, min_difference: float) -> float:
        """Return the chance that this number of seeds answers it.

        The mean at a later look is normal around the present mean; the variance is what the two
        variances differ by, since the seeds of this look are part of it.

        Args:
            seeds: number of seeds of the later look.
            min_difference: smallest difference that matters, in points.
        """
        now = self.difference
        later = now.with_seeds(seeds)
        sd = math.sqrt(max(now.variance - later.variance, 0.0)) or 1e-9
        if self.margin is not None:
            return float(norm.sf(self.margin + later.half_width, now.mean, sd))
        is_better = norm.sf(later.half_width, abs(now.mean), sd)
        is_worse = norm.cdf(-later.half_width, abs(now.mean), sd)
        within = min_difference - later.half_width
        is_equal = norm.cdf(within, now.mean, sd) - norm.cdf(-within, now.mean, sd)
        return float(is_better + is_worse + max(is_equal, 0.0))


def find_questions(folder: SweepFolder, min_difference: float) -> list[Question]:
    """Return the questions of both answers, by the tests of a confirmation so far.

    Args:
        folder: the sweep's folder.
        min_difference: smallest difference that matters, in points; the log may not have it yet.
    """
    image_scores, groups = folder.load_image_scores()
    logs = folder.load_events(), folder.load_confirm_events()
    tables = build_sweep_tables(*logs, image_scores, groups, min_difference)
    has_best = tables.ship["in_ship_set"].eq("best").any()
    candidates = tables.ship[tables.ship["validation_rank"].notna() & has_best]
    ranked = [*zip(candidates["method"], candidates["model"], strict=True)]
    return list_questions(tables.comparison, ranked, tables.cell_results, groups, min_difference)


def list_questions(
    comparison: pd.DataFrame,
    ranked: Sequence[Cell],
    results: Mapping[Cell, CellResult],
    groups: Sequence[object] | None = None,
    min_difference: float = MIN_DIFFERENCE,
) -> list[Question]:
    """Return the questions of both answers.

    They are the first pair of methods, over all students if there are several, and the best
    student against each other one.

    Args:
        comparison: see `kdtune.reports.tables.comparison.comparison_table`.
        ranked: candidates to ship, the best on validation first; none if there is no best yet.
        results: all cells in the order of the sweep.
        groups: see `kdtune.reports.tables.statistics.estimate_mean`.
        min_difference: smallest difference that matters, in points.
    """
    questions = []
    for row in select_main_pair(comparison).head(1).itertuples():
        pair = (row.method_a, row.method_b)
        models = list(dict.fromkeys(model for _, model in results))
        both = tuple(m for m in models if {(method, m) for method in pair} <= results.keys())
        compared = PairComparison(pair, both, results, groups, min_difference)
        if compared.difference is not None:
            is_open = row.verdict in OPEN_VERDICTS
            name = " against ".join(pair)
            questions.append(Question(name, tuple(compared.sides), compared.difference, is_open))
    if not ranked:
        return questions
    columns = compare_with_best(ranked, results, groups, min_difference)
    differences = differences_to_best(ranked, results, groups)
    for cell, difference in differences.items():
        one_sided = replace(difference, level=2 * difference.level / len(differences))
        name, cells = f"{'-'.join(cell)} to ship", (ranked[0], cell)
        is_open = columns[cell]["in_ship_set"] == "yes"
        questions.append(Question(name, cells, one_sided, is_open, min_difference))
    return questions


def add_seeds(
    questions: Iterable[Question], min_difference: float, seeds_by_cell: Mapping[Cell, int] = {}
) -> SeedsAdded | None:
    """Return the seeds of the next look; None if no open question can be answered by seeds.

    A question whose cells have had these seeds, but lack runs that crashed, gets no more.

    Args:
        questions: all questions of the answers.
        min_difference: smallest difference that matters, in points.
        seeds_by_cell: seeds that cells were given so far.
    """
    by_seeds: dict[int, list[Question]] = {}
    for question in questions:
        later = [seeds for seeds in SCHEDULE if seeds > question.difference.seeds]
        if not question.is_open or not later:
            continue
        if all(seeds_by_cell.get(cell, 0) >= later[0] for cell in question.cells):
            continue
        if question.chance_of_answer(LAST_LOOK, min_difference) >= MIN_CHANCE:
            by_seeds.setdefault(later[0], []).append(question)
    if not by_seeds:
        return None
    seeds = min(by_seeds)
    cells = dict.fromkeys(cell for question in by_seeds[seeds] for cell in question.cells)
    names = ", ".join(question.name for question in by_seeds[seeds])
    return SeedsAdded(cells=tuple(cells), seeds=seeds, reason=f"open: {names}")


def add_trials(
    sweep: SweepConfig,
    trials: Mapping[Cell, int],
    search_luck: Mapping[Cell, float],
    test_images: int,
    scores: Mapping[Cell, float],
    limits: Mapping[Cell, int | None] = {},
) -> TrialsAdded | None:
    """Return further trials for the first pair of methods; None if its searches are good enough.

    A search that ended before its limit, for want of points, epochs or time, gets none either; nor
    does a pair with a cell that has no score.

    They are if the forecast of the comparison at the last look can show `min_difference`, or if
    luck is a smaller part of the variance than all else. The luck of a search falls like one over
    its trials (benchmarks/README.md).

    Args:
        sweep: its settings.
        trials: number of trials of each cell.
        search_luck: of each cell, in points.
        test_images: number of test images.
        scores: best accuracy of each cell, share of 1; NaN without one.
        limits: most trials of each cell so far.
    """
    if sweep.trials is None or not (pairs := method_pairs(list(sweep.methods))):
        return None
    models = sweep.students
    cells = [(method, model) for method in pairs[0] for model in models]
    if any(math.isnan(scores.get(cell, math.nan)) for cell in cells):
        return None
    if any(trials[cell] < (limits.get(cell) or 0) for cell in cells):
        return None
    accuracy = max(scores[cell] for cell in cells)
    variance = sum(search_luck[cell] ** 2 for cell in cells) / len(models) ** 2
    forecast = expected_error(test_images, LAST_LOOK, len(models), accuracy)
    rest = forecast.variance - forecast.variance_search
    now = max(trials[cell] for cell in cells)
    limit, wanted = MAX_TRIALS_FACTOR * sweep.trials, now
    while wanted < limit:
        search = variance * (now / wanted) ** 2
        later = replace(forecast, variance_search=search)
        if later.minimum_detectable <= sweep.min_difference or search <= rest:
            break
        wanted = min(limit, math.ceil(wanted * TRIALS_STEP))
    if wanted == now:
        return None
    reason = f"a repeated search could move {' against '.join(pairs[0])} too much"
    return TrialsAdded(cells=tuple(cells), trials=wanted, reason=reason)
