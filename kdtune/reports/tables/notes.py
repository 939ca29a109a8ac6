"""Notes below a leaderboard: verdicts, what the numbers cover, and what is missing."""

from collections.abc import Iterable

import pandas as pd

from kdtune.log.events import Event
from kdtune.reports.tables.comparison import select_main_pair
from kdtune.reports.tables.leaderboard import SweepTables
from kdtune.reports.tables.log_tables import bad_images_table
from kdtune.reports.tables.sentences import advise_next_step, display_name, format_interval

SEARCH_CAVEAT = (
    "Best single runs, not yet a comparison: seed noise and search luck are not in it; run "
    "`kdtune confirm`."
)
"""Stands below every ranking by search scores."""

INTERVAL_NOTE = "±: 95 %, for new seeds and test images; between methods also for a new search."
"""Stands below every leaderboard with ±."""

SHIP_SET_NOTE = (
    "The student to ship is the best on validation, and test changes nothing of that. It tells "
    "which others are worse by more than the difference that matters: one-sided comparisons with "
    "the best (5 % for all together, by Holm's method), paired over seeds and test images. A "
    "repeated search plays no part in it, since the students are given."
)
FEW_SEEDS_NOTE = "With 3 seeds the false-alarm rate is about 7 %."
NO_STUDENT_NOTE = "Without the method student, what is gained over plain training is unknown."
NO_TRIAL_NOTE = "No trial has started yet."


def bad_images_note(events: Iterable[Event]) -> str | None:
    """Return the note that images were left out; None if all were read."""
    table = bad_images_table(events)
    if table.empty:
        return None
    counts = ", ".join(f"{n} {split}" for split, n in table["split"].value_counts().items())
    return f"Images that cannot be read were left out: {counts} (bad_images.csv)."


def answer_sentences(tables: SweepTables, folder: str) -> list[str]:
    """Return at most three sentences: which student to ship, which method is better, and advice.

    Before anything is tested there is only the first; without advice the third one names the
    smallest student that is not shown to be worse.

    Args:
        tables: of the sweep.
        folder: the sweep's folder, for the advice.
    """
    ship, *smallest = tables.ship_sentences
    if tables.leaderboard["test_accuracy_percent"].isna().all():
        return [ship]
    main_rows = select_main_pair(tables.comparison).to_dict("records")[:1]
    advice = [advise_next_step(row, folder) for row in main_rows]
    others = [*filter(None, advice), *smallest][:1]
    return [ship, *(row["sentence"] for row in main_rows), *others]


def result_notes(tables: SweepTables) -> list[str]:
    """Return the notes on a leaderboard with test results; none before anything is tested."""
    tested = tables.leaderboard.dropna(subset="test_accuracy_percent")
    if tested.empty:
        return []
    configurations, cells, _ = _count_test_reads(tables.runs)
    test_reads = [describe_test_reads(tables.runs)] if configurations > cells else []
    return [*unequal_search_notes(tested), *test_reads, INTERVAL_NOTE]


def better_on_test_note(ship: pd.DataFrame) -> str | None:
    """Return why the student to ship is not the best on test; None if it is."""
    tested = ship.dropna(subset=["in_ship_set", "test_accuracy_percent"])
    best = tested[tested["in_ship_set"] == "best"]["test_accuracy_percent"]
    if best.empty or tested["test_accuracy_percent"].max() <= best.item():
        return None
    return (
        "Validation alone chose the student to ship: the one that is highest on test may only "
        "have been lucky there."
    )


def verdict_sentences(comparison: pd.DataFrame) -> list[str]:
    """Return the sentences on the first pair, then on each method against student."""
    tables = select_main_pair(comparison), select_student_gains(comparison)
    return list(dict.fromkeys(sentence for table in tables for sentence in table["sentence"]))


def select_student_gains(comparison: pd.DataFrame) -> pd.DataFrame:
    """Return a row per method against student, that of all models if there is one."""
    overall_first = comparison.sort_values("models", ascending=False, kind="stable")
    student_rows = overall_first[overall_first["method_b"] == "student"]
    return student_rows.drop_duplicates("method_a").sort_index()


def accuracy_sentences(tested: pd.DataFrame) -> list[str]:
    """Return a sentence per cell with its test accuracy, if that has an interval."""
    columns = ["method", "model", "test_accuracy_percent", "test_half_width_points"]
    return [
        f"{display_name(method)} reaches {format_interval(accuracy, width)} % on {model}."
        for method, model, accuracy, width in tested[columns].dropna().itertuples(index=False)
    ]


def unequal_search_notes(tested: pd.DataFrame) -> list[str]:
    """Return the note that compared cells had unequal numbers of trials, if they had."""
    unequal = []
    for model, cells in tested.groupby("model"):
        counts = dict(zip(cells["method"], cells["trials_started"], strict=True))
        if min(counts.values()) < 0.9 * max(counts.values()):
            unequal.append(f"on {model} {', '.join(f'{k} {v}' for k, v in counts.items())}")
    text = f"Unequal searches, and more trials alone help: trials {'; '.join(unequal)}."
    return [text] if unequal else []


def describe_test_reads(runs: pd.DataFrame) -> str:
    """Return a sentence that says how often the test images were read."""
    configurations, cells, networks = _count_test_reads(runs)
    counts = f"{configurations} configuration{'s' * (configurations != 1)}, "
    counts += f"{networks} network{'s' * (networks != 1)}"
    if configurations == cells:
        return f"Test was read once, for the chosen configuration of each cell: {counts}."
    return f"Test was read for more than one configuration of a cell: {counts}, {cells} cells."


def _count_test_reads(runs: pd.DataFrame) -> tuple[int, int, int]:
    """Return the numbers of configurations, cells and networks that were tested."""
    trials = runs.dropna(subset="test_accuracy").groupby(["method", "model"])["trial_id"]
    return int(trials.nunique().sum()), trials.ngroups, int(trials.count().sum())
