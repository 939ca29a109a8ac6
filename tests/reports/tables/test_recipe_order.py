"""The order of methods under several recipes, with accuracies by hand."""

import pandas as pd

from kdtune.reports.tables.recipe_order import recipe_sentence
from kdtune.reports.tables.statistics import Verdict

nan = float("nan")
NO_PAIRS = pd.DataFrame(columns=["method_a", "method_b", "model", "verdict"])


def board(tested=True, **accuracies):
    """A leaderboard from accuracies of at, kd and student by model and recipe, as A_seed."""
    rows = [
        (method, name.replace("_", "@"), accuracy)
        for name, values in accuracies.items()
        for method, accuracy in zip(("at", "kd", "student"), values, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=["method", "model", "search_best_percent"])
    tests = frame["search_best_percent"] if tested else float("nan")
    return frame.assign(test_accuracy_percent=tests)


def test_the_mean_over_the_models_gives_the_order():
    """AT has 80 and KD 75 on the mean under seed; 70 and 65 under strong."""
    same = board(
        A_seed=(90, 70, 60), B_seed=(70, 80, 60), A_strong=(80, 60, 50), B_strong=(60, 70, 50)
    )
    assert recipe_sentence(same, NO_PAIRS) == (
        "The order of methods is the same under seed and strong (by test accuracy): AT, KD, "
        "student; no winner under one recipe loses under another."
    )
    other = board(A_seed=(90, 70, 60), A_strong=(60, 70, 50))
    verdicts = [
        ("at", "kd", "A@seed", Verdict.BETTER_A),
        ("at", "kd", "A@strong", Verdict.BETTER_B),
    ]
    verdicts += [
        ("at", "student", "A@seed", Verdict.BETTER_A),
        ("at", "kd", "all", Verdict.DEPENDS),
    ]
    comparison = pd.DataFrame(verdicts, columns=NO_PAIRS.columns)
    assert recipe_sentence(other, comparison) == (
        "The order of methods is not the same under seed and strong (by test accuracy): seed: AT, "
        "KD, student; strong: KD, AT, student; the winner changes for AT and KD on A."
    )
    assert "no winner under one recipe loses" in recipe_sentence(other, comparison[1:])


def test_before_a_test_the_search_gives_the_order():
    sentence = recipe_sentence(board(False, A_seed=(3, 2, 1), A_strong=(3, 2, 1)), NO_PAIRS)
    assert sentence.endswith(
        "(by search scores, which are not a comparison yet): AT, KD, student."
    )


def test_methods_without_a_score_are_left_out():
    sentence = recipe_sentence(board(A_seed=(3, 2, 1), A_strong=(nan, 2, 1)), NO_PAIRS)
    assert "KD, student" in sentence and "AT" not in sentence


def test_one_recipe_needs_no_sentence():
    assert recipe_sentence(board(A=(3, 2, 1)), NO_PAIRS) is None
    assert recipe_sentence(board(A_seed=(3, 2, 1), A_strong=(nan, nan, nan)), NO_PAIRS) is None
