"""Section: which of two methods is better, in at most five sentences."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from kdtune.log.events import FAILED_STATES
from kdtune.reports.loaded_sweep import LoadedSweep
from kdtune.reports.page.blocks import Block, FigureBlock, Paragraph, TableBlock
from kdtune.reports.page.figures import plot_verdict
from kdtune.reports.tables import notes
from kdtune.reports.tables.columns import COMPARISON
from kdtune.reports.tables.comparison import ALL_MODELS
from kdtune.reports.tables.figure_data import seed_differences
from kdtune.reports.tables.recipe_order import recipe_sentence
from kdtune.reports.tables.sentences import advise_next_step, display_name, format_points
from kdtune.reports.tables.statistics import SIGNIFICANCE_LEVEL, Verdict

VERDICT_LABELS = {
    Verdict.BETTER_A: "{a} better",
    Verdict.BETTER_B: "{b} better",
    Verdict.LEANING_A: "{a} ahead, not safely",
    Verdict.LEANING_B: "{b} ahead, not safely",
    Verdict.EQUAL: "equally good",
    Verdict.UNCLEAR: "undecided",
    Verdict.DEPENDS: "depends on the student",
    Verdict.UNSTABLE: "a seed diverged",
    Verdict.NOT_CONFIRMED: "not confirmed",
}


def verdict_question(sweeps: Sequence[LoadedSweep]) -> str:
    """Return the question that the verdict answers."""
    for sweep in sweeps:
        for row in sweep.main_pair.itertuples():
            return f"Does {display_name(row.method_a)} beat {display_name(row.method_b)}?"
    return "How good is it?"


def verdict_section(sweep: LoadedSweep) -> Iterator[Block]:
    """Yield at most five sentences, the figure of the first pair, and a table of all pairs.

    A sweep with several recipes has one more sentence, on the order of methods under each.
    """
    comparison, pair = sweep.tables.comparison, sweep.main_pair
    if sweep.tables.leaderboard.empty:
        yield Paragraph(notes.NO_TRIAL_NOTE, "missing", "verdict")
    elif pair.empty:
        yield from _single_method(sweep)
    else:
        has_p_values = comparison["p_value"].notna().any()
        yield Paragraph(pair["sentence"][0], "lead")
        if advice := advise_next_step(pair.to_dict("records")[0], sweep.name):
            yield Paragraph(advice)
        if sentence := recipe_sentence(sweep.tables.leaderboard, comparison):
            yield Paragraph(sentence)
        if has_p_values and len(pair) > 2:
            yield Paragraph(_verdicts_by_student(pair))
        if has_p_values:
            yield Paragraph(_gains_sentence(comparison, pair))
        yield Paragraph(_counts_sentence(sweep))
        yield _verdict_figure(sweep)
        if has_p_values:
            yield _pairs_table(comparison)
            order = "this pair on each student, all methods against student"
            sentences = {"in words": notes.verdict_sentences(comparison)}
            yield TableBlock(f"The verdicts in words: {order}.", sentences, True)


def _single_method(sweep: LoadedSweep) -> Iterator[Block]:
    if sweep.tested_cells.empty:
        yield Paragraph(f"There is only one method. {notes.SEARCH_CAVEAT}", "lead", "verdict")
        return
    best = sweep.tested_cells.sort_values("test_accuracy_percent", ascending=False, kind="stable")
    command = sweep.command("confirm")
    too_few = f"Fewer than 3 seeds are finished, too few for an interval; run `{command}`."
    first, *others = notes.accuracy_sentences(best) or [too_few]
    yield Paragraph(first, "lead")
    yield from map(Paragraph, others)
    yield Paragraph("No figure: there is only one method.", "missing", "verdict")


def _verdict_figure(sweep: LoadedSweep) -> Block:
    estimated = sweep.main_pair.dropna(subset="difference_points").reset_index(drop=True)
    if len(estimated):
        seeds = seed_differences(estimated, sweep.tables.cell_results)
        return FigureBlock("verdict", plot_verdict(estimated, seeds), _verdict_caption(estimated))
    state = "no confirmation has ended" if sweep.confirm_events else "nothing is confirmed"
    advice = "" if sweep.folder.is_locked() else f"; run `{sweep.command('confirm')}`"
    return Paragraph(f"No figure: {state}{advice}.", "missing", "verdict")


def _pairs_table(comparison: pd.DataFrame) -> TableBlock:
    rows = comparison.to_dict("records")
    names = [(display_name(row["method_a"]), display_name(row["method_b"])) for row in rows]
    wins = zip(comparison["seeds_won_a"], comparison["seeds"], strict=True)
    columns = {
        "pair": [f"{a} minus {b}" for a, b in names],
        "model": ["all" if row["model"] == ALL_MODELS else row["model"] for row in rows],
        **COMPARISON.to_texts(comparison, "difference_points"),
        "seeds won": ["" if pd.isna(won) else f"{won} of {seeds}" for won, seeds in wins],
        **COMPARISON.to_texts(comparison, "p_value_holm", "limited_by"),
        "verdict": [_verdict_label(row) for row in rows],
    }
    caption = "Every pair of methods, by student. ± is the 95 % half width."
    return TableBlock(f"{caption}{_multiple_testing_note(rows)}", columns, collapsed=True)


def _multiple_testing_note(rows: Sequence[dict[str, Any]]) -> str:
    """Return a caveat about many pairs; for few pairs an empty text."""
    pairs = len({(row["method_a"], row["method_b"]) for row in rows})
    if SIGNIFICANCE_LEVEL * pairs < 0.5:
        return ""
    return (
        f" p (Holm) counts the students of a pair, not the {pairs} pairs: if no method differed, "
        f"about {SIGNIFICANCE_LEVEL * pairs:.2g} of them would still be called better."
    )


def _verdicts_by_student(pair: pd.DataFrame) -> str:
    models_by_label: dict[str, list[str]] = {}
    for row in pair[pair["model"] != ALL_MODELS].to_dict("records"):
        models_by_label.setdefault(_verdict_label(row), []).append(row["model"])
    parts = (f"{label} on {', '.join(models)}" for label, models in models_by_label.items())
    return f"By student: {'; '.join(parts)}."


def _verdict_label(row: dict[str, Any]) -> str:
    a, b = display_name(row["method_a"]), display_name(row["method_b"])
    return VERDICT_LABELS[row["verdict"]].format(a=a, b=b)


def _gains_sentence(comparison: pd.DataFrame, pair: pd.DataFrame) -> str:
    pair_methods = {pair["method_a"][0], pair["method_b"][0]}
    own_rows = comparison[comparison["method_a"].isin(pair_methods)]
    student_rows = notes.select_student_gains(own_rows)
    if student_rows.empty:
        return notes.NO_STUDENT_NOTE
    parts = []
    for row in student_rows.to_dict("records"):
        value, width = row["difference_points"], row["half_width_points"]
        number = f" {value:+z.{2 if width < 1 else 1}f} ± {format_points(width, width)} points"
        number = "" if pd.isna(value) else number
        parts.append(f"{display_name(row['method_a'])}{number} ({_verdict_label(row)})")
    models = int(student_rows["models"].max())
    scope = f" on average over {models} students" if models > 1 else ""
    return f"Gain over student{scope}: {'; '.join(parts)}."


def _counts_sentence(sweep: LoadedSweep) -> str:
    leaderboard, pair = sweep.tables.leaderboard, sweep.main_pair
    seeds, looks = pair["seeds"].min(), pair[["look", "looks"]].dropna()
    look = f" (look {looks['look'].iloc[0]} of {looks['looks'].iloc[0]})" if len(looks) else ""
    failed_trials = int(leaderboard[["trials_diverged", "trials_crashed"]].sum().sum())
    failed_runs = int(sweep.tables.runs["state"].isin(FAILED_STATES).sum())
    images, run_count = sweep.opening_events[0].data.test_images, len(sweep.tables.runs)
    parts = [
        f"{seeds} shared seeds{look}" if seeds else "",
        f"{images:,} test images" if images else "no test images",
        f"{failed_trials} of {leaderboard['trials_started'].sum()} trials failed",
        f"{failed_runs} of {run_count} confirmation runs failed" if run_count else "",
    ]
    line = ", ".join(filter(None, parts)) + "."
    return " ".join([line, *notes.unequal_search_notes(sweep.tested_cells)])


def _verdict_caption(rows: pd.DataFrame) -> str:
    model_rows = rows[rows["model"] != ALL_MODELS]
    clear_count = int(((model_rows["low_points"] > 0) | (model_rows["high_points"] < 0)).sum())
    mean = " Diamond: the mean over all students." * (len(model_rows) < len(rows))
    return (
        f"The 95 % interval excludes zero on {clear_count} of {len(model_rows)} "
        f"student{'s' * (len(model_rows) != 1)}.{mean} Open dots: single seeds. Grey: differences "
        f"below {rows['min_difference_points'][0]:g} points, which do not matter here."
    )
