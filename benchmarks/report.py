"""Means of regrets with intervals, their ratios to stock's, and tables of them.

Regrets are arrays [seeds, BUDGETS, REGRETS], by strategy and cell; the same seed is the same row
in all of them. Intervals of 95 % are bootstrapped over seeds; those of ratios and differences over
pairs of searches with the same seed.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from simulate import BUDGETS, REGRETS

from kdtune.log.events import Cell

NUM_RESAMPLES = 2000
OURS, STOCK = "kdtune", "stock"
RATIO_BUDGET = 20
"""Budget of `regret_over_stock`, in whole trials."""

Regrets = Mapping[str, Mapping[Cell, np.ndarray]]
Interval = dict[str, Any]  # a value by its name, ``low`` and ``high``; lists have a place a budget


def _resample(regrets: np.ndarray) -> np.ndarray:
    """Return means of the same bootstrap samples for any regrets, [NUM_RESAMPLES, ...]."""
    seeds = len(regrets)
    draws = np.random.default_rng(0).integers(seeds, size=(NUM_RESAMPLES, seeds))
    weights = np.stack([np.bincount(draw, minlength=seeds) for draw in draws]) / seeds
    means: np.ndarray = np.tensordot(weights, regrets, axes=1)
    return means


def _bound(name: str, value: np.ndarray, resampled: np.ndarray) -> Interval:
    low, high = np.quantile(resampled, (0.025, 0.975), axis=0)
    bounds = {name: value, "low": low, "high": high}
    return {key: np.round(numbers, 3).tolist() for key, numbers in bounds.items()}


def mean_interval(regrets: np.ndarray) -> Interval:
    """Return the ``mean`` over seeds, which are the first axis."""
    return _bound("mean", regrets.mean(0), _resample(regrets))


def ratio_interval(ours: np.ndarray, stock: np.ndarray) -> Interval:
    """Return the ``ratio`` of mean regrets; seeds are the first axis."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = _resample(ours) / _resample(stock)
        return _bound("ratio", ours.mean(0) / stock.mean(0), ratios)


def select(regrets: np.ndarray, kind: str) -> np.ndarray:
    """Return one kind of regret, [seeds, BUDGETS]."""
    return regrets[..., REGRETS.index(kind)]


def cell_name(cell: Cell) -> str:
    """Return the name of a cell."""
    return "-".join(cell)


def summarize_figures(regrets: Regrets) -> dict[str, Any]:
    """Return means by cell, strategy and kind of regret."""
    figures: dict[str, Any] = {}
    for strategy, by_cell in regrets.items():
        for cell, values in by_cell.items():
            means = {kind: mean_interval(select(values, kind)) for kind in REGRETS}
            figures.setdefault(cell_name(cell), {})[strategy] = means
    return figures


def print_tables(regrets: Regrets) -> None:
    """Print a table for each cell: means after each budget, and what an oracle would pick."""
    for cell in next(iter(regrets.values())):
        print(f"\n{cell_name(cell)}: points of regret, mean [95 %], incumbent / chosen\n")
        _print_head("strategy", BUDGETS)
        for strategy, by_cell in regrets.items():
            kinds = [mean_interval(select(by_cell[cell], k)) for k in ("incumbent", "chosen")]
            _print_row(strategy, kinds, range(len(BUDGETS)))
        if OURS in regrets:
            oracle = mean_interval(select(regrets[OURS][cell], "oracle"))
            _print_row(f"oracle of {OURS}", [oracle], range(len(BUDGETS)))


def print_differences(variants: Regrets, ours: Mapping[Cell, np.ndarray]) -> None:
    """Print by how much each variant's regret is above ours with the same seeds.

    Args:
        variants: their regrets.
        ours: kdtune's, with the same seeds.
    """
    budgets = (6, 12, 20)
    places = [BUDGETS.index(budget) for budget in budgets]
    for cell, regrets in ours.items():
        print(f"\n{cell_name(cell)}: regret less kdtune's, mean [95 %], incumbent / chosen\n")
        _print_head("variant", budgets)
        for variant, by_cell in variants.items():
            differences = by_cell[cell] - regrets
            kinds = [mean_interval(select(differences, k)) for k in ("incumbent", "chosen")]
            _print_row(variant, kinds, places)


def _print_head(first: str, budgets: tuple[int, ...]) -> None:
    print(f"| {first} | {' | '.join(map(str, budgets))} |")
    print("|---" * (len(budgets) + 1) + "|")


def _print_row(name: str, kinds: list[Interval], places: Any) -> None:
    cells = []
    for place in places:
        low, mean, high = ([kind[k][place] for kind in kinds] for k in ("low", "mean", "high"))
        texts = (f"{m:.2f} [{a:.2f}, {b:.2f}]" for a, m, b in zip(low, mean, high, strict=True))
        cells.append(" / ".join(texts))
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def summarize_ratios(regrets: Regrets) -> dict[str, Any]:
    """Return ours over stock's: after `RATIO_BUDGET` trials, and where it is worst of all."""
    if not {OURS, STOCK} <= regrets.keys():
        return {"regret_over_stock": None, "regret_over_stock_chosen": None}
    by_kind = {
        kind: {
            cell_name(cell): ratio_interval(select(ours, kind), select(regrets[STOCK][cell], kind))
            for cell, ours in regrets[OURS].items()
        }
        for kind in ("incumbent", "chosen")
    }
    everywhere = {
        (cell, budget): (interval["ratio"][place], interval["low"][place])
        for cell, interval in by_kind["incumbent"].items()
        for place, budget in enumerate(BUDGETS)
    }
    worst = max(everywhere, key=lambda key: everywhere[key][0])
    return {
        "regret_over_stock": _summarize_ratio(by_kind["incumbent"]),
        "worst_over_stock": {
            "ratio": everywhere[worst][0],
            "cell": worst[0],
            "budget": worst[1],
            "above_1": [key for key, (_, low) in everywhere.items() if low > 1],
        },
        "regret_over_stock_chosen": _summarize_ratio(by_kind["chosen"]),
    }


def _summarize_ratio(ratios: dict[str, Interval]) -> dict[str, Any]:
    by_cell = {cell: pick_budget(interval, RATIO_BUDGET) for cell, interval in ratios.items()}
    return {"worst": max(r["ratio"] for r in by_cell.values()), "by_cell": by_cell}


def pick_budget(interval: Interval, budget: int) -> dict[str, float]:
    """Return an interval after a budget."""
    return {key: values[BUDGETS.index(budget)] for key, values in interval.items()}


def match_baseline(figures: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    """Return the whole trials after which what is chosen is as good as the baseline's after all.

    Args:
        figures: those of `summarize_figures`.
        baseline: by cell the figures that were recorded of an earlier searcher.
    """
    by_cell: dict[str, int | None] = {}
    for cell, strategies in figures.items():
        goal = baseline[cell]["mean"][-1]
        means = zip(BUDGETS, strategies[OURS]["chosen"]["mean"], strict=True)
        by_cell[cell] = next((budget for budget, mean in means if mean <= goal), None)
    never = None in by_cell.values()
    return {"by_cell": by_cell, "worst": None if never else max(filter(None, by_cell.values()))}
