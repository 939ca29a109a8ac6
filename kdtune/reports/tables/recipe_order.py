"""Order of methods under several recipes, and the sentence that says if it is the same."""

import pandas as pd

from kdtune.config.recipes import split_student
from kdtune.reports.tables.comparison import ALL_MODELS
from kdtune.reports.tables.sentences import display_name
from kdtune.reports.tables.statistics import Verdict


def recipe_sentence(leaderboard: pd.DataFrame, comparison: pd.DataFrame) -> str | None:
    """Return a sentence on the order of methods under each recipe; None for a single recipe.

    Methods are ordered by their mean accuracy over the models: on test, or by the search as long
    as nothing is tested. Winners are those of the comparison.

    Args:
        leaderboard: the table `LEADERBOARD` of one sweep.
        comparison: the table `COMPARISON`.
    """
    is_tested = leaderboard["test_accuracy_percent"].notna().any()
    column = "test_accuracy_percent" if is_tested else "search_best_percent"
    recipes = leaderboard["model"].map(lambda student: split_student(student)[1])
    means = leaderboard.groupby(["method", recipes.rename("recipe")], sort=False)[column]
    by_recipe = means.agg(lambda values: values.mean(skipna=False)).unstack().dropna()
    if by_recipe.shape[1] < 2 or len(by_recipe) < 2:
        return None
    orders = {}
    for recipe, values in by_recipe.items():
        ranked = values.sort_values(ascending=False, kind="stable").index
        orders[recipe] = ", ".join(map(display_name, ranked))
    basis = "by test accuracy" if is_tested else "by search scores, which are not a comparison yet"
    names = " and ".join(map(str, orders))
    if len(set(orders.values())) == 1:
        text = f"The order of methods is the same under {names} ({basis}): {[*orders.values()][0]}"
    else:
        lists = "; ".join(f"{recipe}: {order}" for recipe, order in orders.items())
        text = f"The order of methods is not the same under {names} ({basis}): {lists}"
    if not is_tested:
        return f"{text}."
    if reversed_pairs := _reversed_pairs(comparison):
        return f"{text}; the winner changes for {', '.join(reversed_pairs)}."
    return f"{text}; no winner under one recipe loses under another."


def _reversed_pairs(comparison: pd.DataFrame) -> list[str]:
    """Return the pairs of methods, with their model, in which each method wins once."""
    rows = comparison[comparison["model"] != ALL_MODELS]
    models = rows["model"].map(lambda student: split_student(student)[0])
    pairs = rows["verdict"].groupby([rows["method_a"], rows["method_b"], models], sort=False)
    return [
        f"{display_name(a)} and {display_name(b)} on {model}"
        for (a, b, model), verdicts in pairs
        if {Verdict.BETTER_A, Verdict.BETTER_B} <= set(verdicts)
    ]
