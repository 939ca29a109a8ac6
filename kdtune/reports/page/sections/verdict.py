"""The first section of a report: which of the two methods is better, in at most four sentences."""

from collections.abc import Sequence

import pandas as pd

from kdtune.reports.loaded_sweep import Sweep
from kdtune.reports.page.blocks import Block, Grid, Picture, Words, each, texts
from kdtune.reports.page.figures import verdict_figure
from kdtune.reports.tables.comparison import ALL
from kdtune.reports.tables.figure_data import seed_differences
from kdtune.reports.tables.notes import (
    CAVEAT,
    FEW_SEEDS,
    NO_STUDENT,
    NOT_BEGUN,
    reached,
    unequal_searches,
    verdict_sentences,
    with_width,
)
from kdtune.reports.tables.sentences import in_points, name_of
from kdtune.reports.tables.statistics import LEVEL

WORDS = {
    "better_a": "{a} better",
    "better_b": "{b} better",
    "leaning_a": "{a} ahead, not safely",
    "leaning_b": "{b} ahead, not safely",
    "equal": "equally good",
    "unclear": "undecided",
    "depends": "depends on the student",
    "unstable": "a seed diverged",
    "not_confirmed": "not confirmed",
}
"""Verdicts in a few words."""


def question(sweeps: Sequence[Sweep]) -> str:
    """What the verdict answers."""
    for sweep in sweeps:
        if len(sweep.pair):
            a, b = name_of(sweep.pair["method_a"][0]), name_of(sweep.pair["method_b"][0])
            return f"Does {a} beat {b}?"
    return "How good is it?"


def verdict(sweep: Sweep) -> list[Block]:
    """At most four sentences, the figure of the first pair, and all pairs as a table."""
    board, comparison, pair = sweep.tables.leaderboard, sweep.tables.comparison, sweep.pair
    if board.empty:
        return [Words(NOT_BEGUN, "missing", "verdict")]
    if pair.empty:
        if sweep.tested.empty:
            return [Words(f"There is one method only. {CAVEAT}", "lead", "verdict")]
        best = sweep.tested.sort_values("test_accuracy_percent", ascending=False, kind="stable")
        said = reached(best) or [
            "Fewer than 3 seeds are finished, which is too few to say what is reached; run "
            f"`{sweep.command('confirm')}`."
        ]
        alone = Words("No figure: there is one method only.", "missing", "verdict")
        return [Words(said[0], "lead"), *map(Words, said[1:]), alone]
    blocks: list[Block] = [Words(pair["sentence"][0], "lead")]
    known = comparison["p_value"].notna().any()
    if known and len(pair) > 2:
        blocks.append(Words(_by_student(pair)))
    if known:
        blocks.append(Words(_gains(comparison, pair)))
    blocks.append(Words(_counts(sweep)))
    if known and (comparison["seeds"] == 3).any():
        blocks.append(Words(FEW_SEEDS))
    drawn = pair.dropna(subset="difference_points").reset_index(drop=True)
    if len(drawn):
        figure = verdict_figure(drawn, seed_differences(drawn, sweep.tables.cells))
        blocks.append(Picture("verdict", figure, _verdict_caption(drawn)))
    else:
        way = "no confirmation has ended" if sweep.confirmed else "nothing is confirmed"
        run = "" if sweep.folder.is_held() else f"; run `{sweep.command('confirm')}`"
        why = f"No figure: {way}{run}."
        blocks.append(Words(why, "missing", "verdict"))
    if not known:
        return blocks
    rows = comparison.to_dict("records")
    blocks.append(
        Grid(
            f"Every pair of methods, student by student. ± is the 95 % half width.{_luck(rows)}",
            {
                "pair": [f"{name_of(r['method_a'])} minus {name_of(r['method_b'])}" for r in rows],
                "model": ["all" if r["model"] == ALL else r["model"] for r in rows],
                "difference, points": with_width(
                    comparison, "difference_points", "half_width_points", "+"
                ),
                "seeds won": [
                    "" if pd.isna(r["seeds_won_a"]) else f"{r['seeds_won_a']} of {r['seeds']}"
                    for r in rows
                ],
                "p (Holm)": each(comparison["p_value_holm"], ".3f"),
                "limited by": texts(comparison["limited_by"]),
                "verdict": [_in_words(r) for r in rows],
            },
            folded=True,
        )
    )
    sentences = verdict_sentences(comparison)
    blocks.append(
        Grid(
            "The same in words, with advice: this pair on each student, and all against student.",
            {"in words": sentences},
            folded=True,
        )
    )
    return blocks


def _luck(rows: Sequence[dict]) -> str:
    """How far many pairs may be trusted together; of few, nothing."""
    pairs = len({(row["method_a"], row["method_b"]) for row in rows})
    if LEVEL * pairs < 0.5:
        return ""
    return (
        f" p (Holm) counts the students of a pair, not the {pairs} pairs: if no method differed, "
        f"about {LEVEL * pairs:.2g} of them would still be called better."
    )


def _by_student(pair: pd.DataFrame) -> str:
    said: dict[str, list[str]] = {}
    for row in pair[pair["model"] != ALL].to_dict("records"):
        said.setdefault(_in_words(row), []).append(row["model"])
    return "By student: " + "; ".join(f"{w} on {', '.join(m)}" for w, m in said.items()) + "."


def _in_words(row: dict) -> str:
    return WORDS[row["verdict"]].format(a=name_of(row["method_a"]), b=name_of(row["method_b"]))


def _gains(comparison: pd.DataFrame, pair: pd.DataFrame) -> str:
    """What each method of the pair gains over plain training."""
    own = {pair["method_a"][0], pair["method_b"][0]}
    against = comparison[
        (comparison["method_b"] == "student") & comparison["method_a"].isin(own)
    ].sort_values("models", ascending=False, kind="stable")
    against = against.drop_duplicates("method_a").sort_index()
    if against.empty:
        return NO_STUDENT
    said = []
    for row in against.to_dict("records"):
        value, width = row["difference_points"], row["half_width_points"]
        number = (
            ""
            if pd.isna(value)
            else f" {value:+z.{2 if width < 1 else 1}f} ± {in_points(width, width)} points"
        )
        said.append(f"{name_of(row['method_a'])}{number} ({_in_words(row)})")
    models = int(against["models"].max())
    where = f" on average over {models} models" if models > 1 else ""
    return f"Gain over plain training (student){where}: {'; '.join(said)}."


def _counts(sweep: Sweep) -> str:
    board, seeds = sweep.tables.leaderboard, sweep.pair["seeds"]
    failed = int(board[["trials_diverged", "trials_crashed"]].sum().sum())
    runs = int(sweep.tables.runs["status"].isin(["diverged", "crashed"]).sum())
    images, confirming = sweep.opened[0]["data"].get("test_images"), len(sweep.tables.runs)
    said = [
        f"{seeds.min()} shared seeds" if seeds.min() else "",
        f"{images:,} test images" if images else "no test images",
        f"{failed} of {board['trials_started'].sum()} trials failed",
        f"{runs} of {confirming} confirming runs failed" if confirming else "",
    ]
    line = ", ".join(filter(None, said)) + "."
    return " ".join([line, *unequal_searches(sweep.tested)])


def _verdict_caption(drawn: pd.DataFrame) -> str:
    alone = drawn[drawn["model"] != ALL]
    clear = int(((alone["low_points"] > 0) | (alone["high_points"] < 0)).sum())
    mean = " Diamond: the mean over all students." * (len(alone) < len(drawn))
    return (
        f"The 95 % interval lies clear of zero on {clear} of {len(alone)} "
        f"student{'s' * (len(alone) != 1)}.{mean} Open dots: single seeds. Grey: differences "
        f"under {drawn['min_difference_points'][0]:g} points, which do not matter here."
    )
