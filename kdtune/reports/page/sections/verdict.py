"""The first section of a report: which of the two methods is better, in at most four sentences."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from kdtune.reports.loaded_sweep import LoadedSweep
from kdtune.reports.page.blocks import Block, FigureBlock, Paragraph, TableBlock
from kdtune.reports.page.figures import plot_verdict
from kdtune.reports.tables.columns import COMPARISON
from kdtune.reports.tables.comparison import ALL_MODELS
from kdtune.reports.tables.figure_data import seed_differences
from kdtune.reports.tables.notes import (
    FEW_SEEDS_NOTE,
    NO_STUDENT_NOTE,
    NO_TRIAL_NOTE,
    SEARCH_CAVEAT,
    accuracy_sentences,
    select_student_gains,
    unequal_search_notes,
    verdict_sentences,
)
from kdtune.reports.tables.sentences import display_name, format_points
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
"""Verdicts in a few words."""


def verdict_question(sweeps: Sequence[LoadedSweep]) -> str:
    """What the verdict answers."""
    for sweep in sweeps:
        if len(sweep.main_pair):
            a, b = (
                display_name(sweep.main_pair["method_a"][0]),
                display_name(sweep.main_pair["method_b"][0]),
            )
            return f"Does {a} beat {b}?"
    return "How good is it?"


def verdict_section(sweep: LoadedSweep) -> list[Block]:
    """At most four sentences, the figure of the first pair, and all pairs as a table."""
    leaderboard, comparison, pair = (
        sweep.tables.leaderboard,
        sweep.tables.comparison,
        sweep.main_pair,
    )
    if leaderboard.empty:
        return [Paragraph(NO_TRIAL_NOTE, "missing", "verdict")]
    if pair.empty:
        if sweep.tested_cells.empty:
            return [Paragraph(f"There is one method only. {SEARCH_CAVEAT}", "lead", "verdict")]
        best = sweep.tested_cells.sort_values(
            "test_accuracy_percent", ascending=False, kind="stable"
        )
        lines = accuracy_sentences(best) or [
            "Fewer than 3 seeds are finished, which is too few to say what is reached; run "
            f"`{sweep.command('confirm')}`."
        ]
        no_figure = Paragraph("No figure: there is one method only.", "missing", "verdict")
        return [Paragraph(lines[0], "lead"), *map(Paragraph, lines[1:]), no_figure]
    blocks: list[Block] = [Paragraph(pair["sentence"][0], "lead")]
    has_p_values = comparison["p_value"].notna().any()
    if has_p_values and len(pair) > 2:
        blocks.append(Paragraph(_verdicts_by_student(pair)))
    if has_p_values:
        blocks.append(Paragraph(_gains_sentence(comparison, pair)))
    blocks.append(Paragraph(_counts_sentence(sweep)))
    if has_p_values and (comparison["seeds"] == 3).any():
        blocks.append(Paragraph(FEW_SEEDS_NOTE))
    estimated_rows = pair.dropna(subset="difference_points").reset_index(drop=True)
    if len(estimated_rows):
        figure = plot_verdict(
            estimated_rows, seed_differences(estimated_rows, sweep.tables.cell_results)
        )
        blocks.append(FigureBlock("verdict", figure, _verdict_caption(estimated_rows)))
    else:
        state_text = (
            "no confirmation has ended" if sweep.confirm_events else "nothing is confirmed"
        )
        advice = "" if sweep.folder.is_locked() else f"; run `{sweep.command('confirm')}`"
        reason = f"No figure: {state_text}{advice}."
        blocks.append(Paragraph(reason, "missing", "verdict"))
    if not has_p_values:
        return blocks
    rows = comparison.to_dict("records")
    blocks.append(
        TableBlock(
            f"Every pair of methods, student by student. ± is the 95 % half width.{_multiple_testing_note(rows)}",
            {
                "pair": [
                    f"{display_name(r['method_a'])} minus {display_name(r['method_b'])}"
                    for r in rows
                ],
                "model": ["all" if r["model"] == ALL_MODELS else r["model"] for r in rows],
                **COMPARISON.to_texts(comparison, "difference_points"),
                "seeds won": [
                    "" if pd.isna(r["seeds_won_a"]) else f"{r['seeds_won_a']} of {r['seeds']}"
                    for r in rows
                ],
                **COMPARISON.to_texts(comparison, "p_value_holm", "limited_by"),
                "verdict": [_verdict_label(r) for r in rows],
            },
            collapsed=True,
        )
    )
    sentences = verdict_sentences(comparison)
    blocks.append(
        TableBlock(
            "The same in words, with advice: this pair on each student, and all against student.",
            {"in words": sentences},
            collapsed=True,
        )
    )
    return blocks


def _multiple_testing_note(rows: Sequence[dict[str, Any]]) -> str:
    """How far many pairs may be trusted together; of few, nothing."""
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
    return (
        "By student: "
        + "; ".join(f"{w} on {', '.join(m)}" for w, m in models_by_label.items())
        + "."
    )


def _verdict_label(row: dict[str, Any]) -> str:
    return VERDICT_LABELS[row["verdict"]].format(
        a=display_name(row["method_a"]), b=display_name(row["method_b"])
    )


def _gains_sentence(comparison: pd.DataFrame, pair: pd.DataFrame) -> str:
    """What each method of the pair gains over plain training."""
    pair_methods = {pair["method_a"][0], pair["method_b"][0]}
    student_rows = select_student_gains(comparison[comparison["method_a"].isin(pair_methods)])
    if student_rows.empty:
        return NO_STUDENT_NOTE
    parts = []
    for row in student_rows.to_dict("records"):
        value, width = row["difference_points"], row["half_width_points"]
        number = (
            ""
            if pd.isna(value)
            else f" {value:+z.{2 if width < 1 else 1}f} ± {format_points(width, width)} points"
        )
        parts.append(f"{display_name(row['method_a'])}{number} ({_verdict_label(row)})")
    models = int(student_rows["models"].max())
    scope = f" on average over {models} models" if models > 1 else ""
    return f"Gain over plain training (student){scope}: {'; '.join(parts)}."


def _counts_sentence(sweep: LoadedSweep) -> str:
    leaderboard, seeds = sweep.tables.leaderboard, sweep.main_pair["seeds"]
    failed_trials = int(leaderboard[["trials_diverged", "trials_crashed"]].sum().sum())
    failed_runs = int(sweep.tables.runs["status"].isin(["diverged", "crashed"]).sum())
    images, run_count = sweep.opening_events[0].data.test_images, len(sweep.tables.runs)
    parts = [
        f"{seeds.min()} shared seeds" if seeds.min() else "",
        f"{images:,} test images" if images else "no test images",
        f"{failed_trials} of {leaderboard['trials_started'].sum()} trials failed",
        f"{failed_runs} of {run_count} confirming runs failed" if run_count else "",
    ]
    line = ", ".join(filter(None, parts)) + "."
    return " ".join([line, *unequal_search_notes(sweep.tested_cells)])


def _verdict_caption(rows: pd.DataFrame) -> str:
    model_rows = rows[rows["model"] != ALL_MODELS]
    clear_count = int(((model_rows["low_points"] > 0) | (model_rows["high_points"] < 0)).sum())
    mean = " Diamond: the mean over all students." * (len(model_rows) < len(rows))
    return (
        f"The 95 % interval lies clear of zero on {clear_count} of {len(model_rows)} "
        f"student{'s' * (len(model_rows) != 1)}.{mean} Open dots: single seeds. Grey: differences "
        f"under {rows['min_difference_points'][0]:g} points, which do not matter here."
    )
