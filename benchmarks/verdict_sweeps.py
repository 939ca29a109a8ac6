"""Both answers about whole sweeps, at once and `--until-decided`, for `verdict.py`.

Four cells of one student are confirmed, or eight of two. Their truth is one of `TRUTHS`:

* a number: AT and FitNets are two searches of one cell, and one of them, drawn which, is worse by
  so many points. Each of the others is worse by a multiple of it, drawn from 0 to 3, and all of a
  second student by another.
* ``None``: the four cells of one sweep, as far apart as their curves are.

The rounds of `--until-decided` are those of `kdtune.tuning.scheduling.until_decided`: three
candidates of each cell have 5 seeds, those chosen get more where a question is open. The fixed
design is 10 seeds for three candidates of each cell, which are then read once.

The method answer is undecided if it is neither a winner nor ``equal``; it is wrong if the means
over all searches differ otherwise. The ship answer is wrong if the truly best of what was chosen
is not in the set, and undecided if the set is larger than an oracle's: those that are not worse
than the truly best by more than the smallest difference that matters.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from simulate import CURVES, load_problems
from verdict_confirmations import ConfirmedCell, TestImages
from verdict_rates import IMAGES, SEEDS, Row, SearchPool, collect_rows, rate_with_error
from verdict_searches import BEST_ACCURACY_PERCENT, BUDGETS, FinishedSearch

from kdtune.config.sweep import MIN_DIFFERENCE
from kdtune.log.events import Cell
from kdtune.reports.tables.comparison import comparison_table
from kdtune.reports.tables.looks import LAST_LOOK
from kdtune.reports.tables.ship import IN_SET, compare_with_best
from kdtune.reports.tables.statistics import SEED_SD_POINTS
from kdtune.tuning.scheduling import until_decided

METHODS = ("at", "fitnets", "kd", "student")
PAIR = METHODS[:2]
TRUTHS = (0.0, 0.5, 1.0, None)
FIXED_SEEDS = 10
SEED_SDS = (SEED_SD_POINTS, 0.32)
"""By which seeds move a test accuracy, in points: as forecast, and as in the recorded runs."""

ERRORS = ("method_wrong", "method_undecided", "ship_wrong", "ship_undecided")


@dataclass(frozen=True)
class DrawnSweep:
    """Searches of all cells of a sweep, and the true difference of the first two methods."""

    searches: Mapping[Cell, FinishedSearch]
    difference: float

    def confirm(self, test: TestImages, seeds: int) -> dict[Cell, ConfirmedCell]:
        """Return the cells, whose candidates were chosen by the first `SEEDS` seeds.

        Args:
            test: the test images.
            seeds: number of seeds.
        """
        return {
            cell: test.confirm(search, seeds, deciding_seeds=SEEDS)
            for cell, search in self.searches.items()
        }


def draw_sweep(
    pool: SearchPool, budget: int, truth: float | None, students: int, rng: np.random.Generator
) -> DrawnSweep:
    """Draw a sweep from a pool.

    Args:
        pool: of the searches.
        budget: in whole trials.
        truth: of `TRUTHS`.
        students: number of students.
        rng: draws.
    """
    optima = {cell: 100 * p.optimum for cell, p in load_problems(CURVES, trees=False).items()}
    searches: dict[Cell, FinishedSearch] = {}
    differences = []
    for student in range(students):
        first, second = rng.choice(pool.sweeps, 2, replace=False)
        if truth is None:
            drawn = [(first, cell) for cell in sorted(pool.cells)]
            lost = [max(optima.values()) - optima[cell] for _, cell in drawn]
        else:
            cells = [pool.cells[i] for i in rng.permutation(len(pool.cells))]
            drawn = [(first, cells[0]), (second, cells[0]), (first, cells[1]), (first, cells[2])]
            ranks = np.array([*rng.permutation(2), *rng.integers(0, 4, 2)])
            lost = list(truth * (ranks + (rng.integers(4) if student else 0)))
        found = [pool.searches[sweep, cell, budget] for sweep, cell in drawn]
        means = [pool.expected_accuracy(s) - points for s, points in zip(found, lost, strict=True)]
        differences.append(means[0] - means[1])
        for method, search, points in zip(METHODS, found, lost, strict=True):
            above = optima[search.cell] - BEST_ACCURACY_PERCENT  # of the curves, on validation
            searches[method, f"student {student}"] = search.worsen(points, of_validation=above)
    return DrawnSweep(searches, float(np.mean(differences)))


class Answers:
    """The answers of a report after some looks, and how right they are.

    Args:
        cells: what was chosen, and its runs.
        looks: numbers of seeds at which each cell was tested.
        difference: the true one of the first two methods, in points.
    """

    def __init__(
        self,
        cells: Mapping[Cell, ConfirmedCell],
        looks: Mapping[Cell, Sequence[int]],
        difference: float,
    ):
        self.cells, self.difference = cells, difference
        self.results = {cell: confirmed.result(looks[cell]) for cell, confirmed in cells.items()}
        scores = {cell: c.validation_percent(looks[cell][-1]) for cell, c in cells.items()}
        self.ranked = sorted(cells, key=scores.__getitem__, reverse=True)
        pair = {cell: result for cell, result in self.results.items() if cell[0] in PAIR}
        self.comparison = comparison_table(pair)
        self.compared: Mapping[Cell, Row] = compare_with_best(self.ranked, self.results)

    def judge_method(self) -> Row:
        """Return whether the method answer is wrong, and whether it is open."""
        verdict, difference = self.comparison["verdict"].iloc[-1], self.difference
        is_right = {
            "better_a": difference > 0,
            "better_b": difference < 0,
            "equal": abs(difference) < MIN_DIFFERENCE,
        }
        return {
            "method_wrong": not is_right.get(verdict, True),
            "method_undecided": verdict not in is_right,
        }

    def judge_ship(self) -> Row:
        """Return whether the ship answer is right, and how large its set is."""
        true = {cell: confirmed.chosen.accuracy for cell, confirmed in self.cells.items()}
        best, chosen = max(true, key=true.__getitem__), self.ranked[0]
        in_set = {cell for cell in true if self.compared[cell]["in_ship_set"] in IN_SET}
        oracle = {cell for cell in true if true[cell] >= true[best] - MIN_DIFFERENCE}
        high = {cell: self.compared[cell]["behind_best_high_points"] for cell in self.ranked[1:]}
        return {
            "covers": all(true[chosen] - true[cell] <= high[cell] for cell in high),
            "hit": best in in_set,
            "size": len(in_set),
            "oracle": len(oracle),
            "ship_wrong": best not in in_set,
            "ship_undecided": len(in_set) > len(oracle),
        }


def decide_by_rounds(
    cells: Mapping[Cell, ConfirmedCell], difference: float
) -> tuple[Answers, int]:
    """Return the answers of the last round of `until_decided`, and the number of its runs.

    Args:
        cells: with as many seeds as the last look has.
        difference: see `Answers`.
    """
    looks: dict[Cell, tuple[int, ...]] = {cell: (SEEDS,) for cell in cells}
    while True:
        answers = Answers(cells, looks, difference)
        told = answers.comparison, answers.ranked, answers.results
        added = until_decided.add_seeds(until_decided.list_questions(*told), MIN_DIFFERENCE)
        if added is None:
            candidates = [len(cell.search.candidates) for cell in cells.values()]
            further = sum(seen[-1] - SEEDS for seen in looks.values())
            return answers, SEEDS * sum(candidates) + further
        for cell in added.cells:
            if looks[cell][-1] < added.seeds:
                looks[cell] = (*looks[cell], added.seeds)


def compare_with_fixed_design(
    pool: SearchPool,
    budget: int,
    seed: int,
    repeats: int,
    truth: float | None,
    seed_sd: float,
    chances: Sequence[float],
) -> list[Row]:
    """Decide by rounds and by the fixed design; return a row per sweep and least chance."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(repeats):
        sweep = draw_sweep(pool, budget, truth, 1, rng)
        test = TestImages(IMAGES, rng, seed_sd)
        cells = sweep.confirm(test, LAST_LOOK)
        fixed = {cell: test.choose_again(c, FIXED_SEEDS) for cell, c in cells.items()}
        once = Answers(fixed, dict.fromkeys(fixed, (FIXED_SEEDS,)), sweep.difference)
        fixed_runs = FIXED_SEEDS * sum(len(s.candidates) for s in sweep.searches.values())
        at_once = _judge(once)
        for chance in chances:
            until_decided.MIN_CHANCE = chance
            answers, runs = decide_by_rounds(cells, sweep.difference)
            judged = _judge(answers)
            more = {f"more_{name}": float(judged[name]) - at_once[name] for name in ERRORS}
            told = {"chance": chance, "runs": runs / fixed_runs, **judged, **more}
            rows.append({**_sweeps(sweep), **told})
    return rows


def compare_ship_sets(
    pool: SearchPool, budget: int, seed: int, repeats: int, truth: float | None, students: int
) -> list[Row]:
    """Answer which student to ship after `SEEDS` seeds; return a row per sweep."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(repeats):
        sweep = draw_sweep(pool, budget, truth, students, rng)
        cells = sweep.confirm(TestImages(IMAGES, rng), SEEDS)
        answers = Answers(cells, dict.fromkeys(cells, (SEEDS,)), sweep.difference)
        rows.append({**_sweeps(sweep), **answers.judge_ship()})
    return rows


def _judge(answers: Answers) -> Row:
    return {**answers.judge_method(), **answers.judge_ship()}


def _sweeps(sweep: DrawnSweep) -> Row:
    """Return the sweeps of the first two searches, for standard errors."""
    first, second, *_ = (search.sweep for search in sweep.searches.values())
    return {"first": first, "second": second}


def measure_ship_sets(pool: SearchPool, repeats: int, executor: Executor) -> dict[str, float]:
    """Print and return how good the ship answer is.

    Args:
        pool: of the searches.
        repeats: of each truth and number of students.
        executor: runs the comparisons.
    """
    print(
        f"\nThe student to ship, {SEEDS} seeds and {IMAGES:,} images\n\n| cells | points apart "
        "| bounds hold, % | the true best is in the set, % | size of the set | of an oracle's "
        "| ratio |\n" + "|---" * 7 + "|"
    )
    frames = []
    for students in (1, 2):
        for truth in TRUTHS:
            many = partial(compare_ship_sets, truth=truth, students=students)
            rows = collect_rows(many, pool, BUDGETS[1:2], repeats, executor)
            _print_ship_row(f"{len(METHODS) * students} | {_name_truth(truth)}", rows)
            frames.append(rows)
    rows = pd.concat(frames)
    _print_ship_row("all | all", rows)
    return {
        "coverage_ship": float(rows["covers"].mean()),
        "ship_hit": float(rows["hit"].mean()),
        "ship_size": float(rows["size"].mean() / rows["oracle"].mean()),
    }


def _name_truth(truth: float | None) -> str:
    return "as the curves are" if truth is None else f"{truth:g}"


def _print_ship_row(text: str, rows: pd.DataFrame) -> None:
    size, oracle = rows["size"].mean(), rows["oracle"].mean()
    rates = f"{_percent(rows, 'covers')} | {_percent(rows, 'hit')}"
    print(f"| {text} | {rates} | {size:.2f} | {oracle:.2f} | {size / oracle:.2f} |", flush=True)


def _percent(rows: pd.DataFrame, column: str) -> str:
    rate, error = rate_with_error(rows, column)
    return f"{100 * rate:.1f} ± {100 * error:.1f}"


def measure_rounds(
    pool: SearchPool, repeats: int, chances: Sequence[float], executor: Executor
) -> dict[str, float]:
    """Print and return what `--until-decided` saves, and its errors beside those of fixed seeds.

    Args:
        pool: of the searches.
        repeats: of each truth.
        chances: values of `MIN_CHANCE`; the first is that of the figures.
        executor: runs the comparisons.
    """
    print(
        "\n`--until-decided`, % of sweeps; in brackets: more than 10 seeds for every candidate\n\n"
        f"| seeds move by | least chance | points apart | runs | {' | '.join(ERRORS)} "
        "| set / oracle's |\n" + "|---" * (5 + len(ERRORS)) + "|"
    )
    saved = []
    for seed_sd in SEED_SDS:
        frames = []
        for truth in TRUTHS:
            many = partial(
                compare_with_fixed_design, truth=truth, seed_sd=seed_sd, chances=chances
            )
            rows = collect_rows(many, pool, BUDGETS[1:2], repeats, executor)
            frames.append(rows.assign(truth=_name_truth(truth)))
        every = pd.concat(frames)
        for chance in chances:
            some = every[every["chance"] == chance]
            for truth, group in [*some.groupby("truth", sort=False), ("all", some)]:
                _print_rounds_row(f"{seed_sd:g} | {chance:g} | {truth}", group)
            saved.append(1 - float(some["runs"].mean()))
    return {"runs_saved": saved[0]}


def _print_rounds_row(text: str, rows: pd.DataFrame) -> None:
    errors = (
        f"{100 * rows[name].mean():.1f} ({_percent(rows, f'more_{name}')})" for name in ERRORS
    )
    ratio = rows["size"].mean() / rows["oracle"].mean()
    numbers = f"{_percent(rows, 'runs')} | {' | '.join(errors)} | {ratio:.2f}"
    print(f"| {text} | {numbers} |", flush=True)
