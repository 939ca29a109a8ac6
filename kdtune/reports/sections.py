"""What a report says of one sweep, section by section: sentences, tables and figures, unrendered.

A section without data is one sentence that says why, and what would add it.
"""

import json
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import yaml
from matplotlib.figure import Figure

from kdtune.reports.comparison import ALL
from kdtune.reports.curves import CURVE
from kdtune.reports.failures import diverged_settings, errors_table
from kdtune.reports.figures import (
    outcomes_figure,
    search_figure,
    settings_figure,
    ship_figure,
    verdict_figure,
)
from kdtune.reports.files import every_table
from kdtune.reports.points import (
    curve_points,
    first_pair,
    outcomes,
    range_points,
    seed_differences,
    settings_summary,
    ship_points,
)
from kdtune.reports.render import (
    CAVEAT,
    COVERS,
    reached,
    test_reads,
    unequal_searches,
    verdict_sentences,
)
from kdtune.reports.rungs import grace_advice
from kdtune.reports.settings import LEAST_GOOD, LEAST_TRIALS, SETTINGS, distributions
from kdtune.reports.statistics import in_points, name_of, visible
from kdtune.reports.sweep import tables_of
from kdtune.reports.tables import bad_images_note
from kdtune.results import STATES, SweepFolder


@dataclass(frozen=True)
class Words:
    """A sentence or two; ``kind`` is ``lead``, ``text``, ``missing`` or ``sweep``, a heading."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Grid:
    """A table of texts, by heading."""

    caption: str
    columns: dict[str, Sequence[str]]
    folded: bool = False
    kind: str = "grid"

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The cells, row by row."""
        return list(zip(*self.columns.values(), strict=True))

    @property
    def groups(self) -> list[str]:
        """To which group each row belongs; none where rows are not grouped."""
        head = next((head for head in GROUPED if head in self.columns), None)
        names = list(self.columns[head]) if head else []
        return names if len(set(names)) < len(names) else []


@dataclass(frozen=True)
class Picture:
    """A figure; the caption begins with what it shows."""

    name: str
    figure: Figure
    caption: str
    kind: str = "picture"


@dataclass(frozen=True)
class Code:
    """Text to copy."""

    caption: str
    text: str
    folded: bool = False
    kind: str = "code"


Block = Words | Grid | Picture | Code

GROUPED = ("pair", "model", "method")
"""Columns that group the rows of a table, the first that it has."""

LEFT = ("sweep", "model", "method", "status", "settings", "setting", "pair", "verdict", "in words")
"""Headings over columns of words."""

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

VERSIONS = ("kdtune", "python", "torch", "ray", "optuna", "platform")


class Sweep:
    """A sweep's folder with all that is made from it, read once."""

    def __init__(self, path: Path):
        self.path = path
        self.folder = SweepFolder(path)
        self.events = self.folder.events()
        self.confirmed = self.folder.confirm_events()
        self.opened = self.folder.opened()
        self.tables = tables_of(self.folder)
        self.known = every_table(self.folder, self.tables)
        self.spaces = distributions(self.events)

    @property
    def name(self) -> str:
        """For headings."""
        return str(self.path)

    @property
    def config(self) -> dict:
        """Settings of the sweep when it was opened last."""
        return self.opened[-1]["config"]

    @property
    def tested(self) -> pd.DataFrame:
        """The cells whose test images were read."""
        return self.tables.leaderboard.dropna(subset="test_accuracy_percent")

    @cached_property
    def pair(self) -> pd.DataFrame:
        """See `kdtune.reports.points.first_pair`."""
        return first_pair(self.tables.comparison)

    def command(self, verb: str) -> str:
        """A command about this sweep."""
        return f"kdtune {verb} {shlex.quote(str(self.path))}"

    def facts(self) -> dict[str, str]:
        """What was run, for the head of the page."""
        data, teacher = self.opened[0]["data"], self.opened[0].get("teacher")
        names = data["classes"]
        started = self.tables.leaderboard["trials_started"]
        counts = sorted({*started.tolist()})
        asked = [event for event in self.confirmed if event["event"] == "confirm"]
        images = [data.get(f"{split}_images") for split in ("train", "validation", "test")]
        taught = "none"
        if teacher:
            taught = str(teacher.get("model", ""))
            for split in ("validation", "test"):
                if teacher.get(f"{split}_accuracy") is not None:
                    taught += f", {split} {100 * teacher[f'{split}_accuracy']:.1f} %"
        last = [*self.events, *self.confirmed][-1].get("time", 0)
        planned = self.config.get("trials")
        return {
            "last event": time.strftime("%Y-%m-%d %H:%M", time.localtime(last)),
            "state": self.state(),
            "images (train / validation / test)": " / ".join(
                "none" if count is None else f"{count:,}" for count in images
            ),
            "classes": f"{len(names)}: {', '.join(names[:6])}{', …' * (len(names) > 6)}",
            "teacher": taught,
            "trials begun in each cell": " to ".join(map(str, [*counts[:1], *counts[1:][-1:]]))
            + (f" (of {planned})" if planned else "")
            if counts
            else "none yet",
            "confirmed": (
                f"best {asked[-1]['top']} of each cell, {asked[-1]['seeds']} seeds each"
                if asked and "top" in asked[-1]
                else "no"
                if not asked
                else "yes"
            ),
        }

    def state(self) -> str:
        """How far it is, in words."""
        if self.folder.is_held():
            return "running"
        if self.events[-1]["event"] != "complete":
            return f"partial: the search was interrupted; to go on: `{self.command('resume')}`"
        if not self.confirmed:
            return f"searched, not confirmed; next: `{self.command('confirm')}`"
        if self.confirmed[-1]["event"] != "complete":
            return f"partial: confirming was interrupted; to go on: `{self.command('confirm')}`"
        return "complete"


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
        return [Words("No trial has begun yet.", "missing")]
    if pair.empty:
        if sweep.tested.empty:
            return [Words(f"There is one method only. {CAVEAT}", "lead")]
        best = sweep.tested.sort_values("test_accuracy_percent", ascending=False, kind="stable")
        said = reached(best) or [
            "Fewer than 3 seeds are finished, which is too few to say what is reached; run "
            f"`{sweep.command('confirm')}`."
        ]
        return [Words(said[0], "lead"), *map(Words, said[1:])]
    blocks: list[Block] = [Words(pair["sentence"][0], "lead")]
    known = comparison["p_value"].notna().any()
    if known and len(pair) > 2:
        blocks.append(Words(_by_student(pair)))
    if known:
        blocks.append(Words(_gains(comparison, pair)))
    blocks.append(Words(_counts(sweep)))
    if known and (comparison["seeds"] == 3).any():
        blocks.append(Words("With 3 seeds the false-alarm rate is about 7 %."))
    drawn = pair.dropna(subset="difference_points").reset_index(drop=True)
    if len(drawn):
        figure = verdict_figure(drawn, seed_differences(drawn, sweep.tables.cells))
        blocks.append(Picture("verdict", figure, _verdict_caption(drawn)))
    else:
        blocks.append(
            Words(f"No figure: nothing is confirmed; run `{sweep.command('confirm')}`.", "missing")
        )
    if not known:
        return blocks
    rows = comparison.to_dict("records")
    blocks.append(
        Grid(
            "Every pair of methods, student by student. ± is the 95 % half width.",
            {
                "pair": [f"{name_of(r['method_a'])} minus {name_of(r['method_b'])}" for r in rows],
                "model": ["all" if r["model"] == ALL else r["model"] for r in rows],
                "difference, points": _with_width(
                    comparison, "difference_points", "half_width_points", "+"
                ),
                "seeds won": [
                    "" if pd.isna(r["seeds_won_a"]) else f"{r['seeds_won_a']} of {r['seeds']}"
                    for r in rows
                ],
                "p (Holm)": _each(comparison["p_value_holm"], ".3f"),
                "limited by": _texts(comparison["limited_by"]),
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
        return "Without the method student, what is gained over plain training is unknown."
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
    images = sweep.opened[0]["data"].get("test_images")
    said = [
        f"{seeds.min()} shared seeds" if seeds.min() else "",
        f"{images:,} test images" if images else "no test images",
        f"{failed} of {board['trials_started'].sum()} trials failed",
        f"{runs} of {len(sweep.tables.runs)} confirming runs failed" if sweep.confirmed else "",
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


def leaderboard(board: pd.DataFrame, number: int = 0) -> list[Block]:
    """The table of a sweep, or of comparable ones, grouped by model.

    Args:
        board: as `kdtune.reports.leaderboard.join_sweeps` makes it.
        number: of tables before it.
    """
    if board.empty:
        return [Words("No trial has begun yet.", "missing")]
    tested = board["test_accuracy_percent"].notna()
    seconds = board["search_device_seconds"] + board["confirm_device_seconds"].fillna(0)
    score = "search score, % (not a result)"
    columns: dict[str, Sequence[str] | None] = {
        "sweep": _texts(board["sweep"]) if "sweep" in board else None,
        "model": _texts(board["model"]),
        "rank": _each(board["rank"], "d") if tested.any() else None,
        "method": [name_of(method) for method in board["method"]],
        "status": [s.replace("_", " ") for s in board["status"]]
        if (board["status"] != "ok").any()
        else None,
        "test accuracy, %": _with_width(board, "test_accuracy_percent", "test_half_width_points")
        if tested.any()
        else None,
        "gain over student, points": _with_width(
            board, "gain_over_student_points", "gain_over_student_half_width_points", "+"
        )
        if board["gain_over_student_points"].notna().any()
        else None,
        score: _each(board["search_best_percent"].mask(tested), ".2f")
        if not tested.all()
        else None,
        "optimism of the search, points": _each(board["optimism_gap_points"], ".2f")
        if tested.any()
        else None,
        "seeds": _each(board["seeds_ok"], "d") if tested.any() else None,
        "trials": _each(board["trials_started"], "d"),
        "device hours": _each(seconds / 3600, ".2f"),
        "settings": _texts(board["settings"]),
    }
    caption = (
        "± is the 95 % half width. Methods between which nothing is decided share a rank. "
        "Optimism: the best score of the search minus what the same trial reaches when it is "
        "trained again."
        if tested.any()
        else CAVEAT
    )
    blocks: list[Block] = [Grid(caption, {h: c for h, c in columns.items() if c is not None})]
    if tested.any() and not tested.all():
        blocks.append(Words(f"Rows without test accuracy: {CAVEAT[0].lower()}{CAVEAT[1:]}"))
    if tested.any() and board["gain_over_student_points"].isna().all():
        blocks.append(Words("Gain over student is left out: it was not confirmed, or not run."))
    return blocks


def ship(sweep: Sweep) -> list[Block]:
    """What each student costs, and what it reaches for that."""
    points = ship_points(sweep.tables.leaderboard)
    if points.empty:
        return [Words("No cell has a sound trial yet.", "missing")]
    test = points["split"].iloc[0] == "test"
    blocks: list[Block] = []
    cost = "latency_ms" if points["latency_ms"].notna().any() else "macs"
    drawn = points.dropna(subset=cost)
    if len(drawn):
        teacher = (sweep.opened[0].get("teacher") or {}).get(f"{points['split'].iloc[0]}_accuracy")
        figure = ship_figure(drawn, None if teacher is None else 100 * teacher)
        best = drawn.loc[drawn["accuracy_percent"].idxmax()]
        what = "test accuracy" if test else "search score, which is no result,"
        price = f"{best[cost]:.2f} ms" if cost == "latency_ms" else f"{best[cost]:,} multiply-adds"
        caption = (
            f"The highest {what} is {best['accuracy_percent']:.1f} %: {name_of(best['method'])} "
            f"on {best['model']}, {price} for one image."
            f"{' Bars: 95 %.' if test else ''} Methods of one student cost the same and are drawn "
            f"side by side.{'' if teacher is not None else _unknown_teacher(sweep, test)}"
        )
        blocks.append(Picture("ship", figure, caption))
    else:
        blocks.append(
            Words(
                "No figure: what the students cost is measured when the sweep is confirmed; run "
                f"`{sweep.command('confirm')}`.",
                "missing",
            )
        )
    costs = sweep.tables.models
    if len(costs):
        measured = ", ".join(sorted({*_texts(costs["latency_device"])} - {""}))
        blocks.append(
            Grid(
                "The student alone, without teacher; the median time for one image on "
                f"{measured or 'an unknown device'}.",
                {
                    "model": _texts(costs["model"]),
                    "parameters": _each(costs["parameters"], ",d"),
                    "multiply-adds for one image": _each(costs["macs"], ",d"),
                    "milliseconds for one image": _each(costs["latency_ms"], ".2f"),
                },
            )
        )
    return blocks


def _unknown_teacher(sweep: Sweep, test: bool) -> str:
    if not test or not sweep.opened[0].get("teacher"):
        return ""
    return " No line for the teacher: its test accuracy is not known."


def search(sweep: Sweep) -> list[Block]:
    """How each search got on, and what it was given."""
    board = sweep.tables.leaderboard
    if board.empty:
        return [Words("No trial has begun yet.", "missing")]
    curve = sweep.known.get("search_curve", pd.DataFrame(columns=CURVE))
    points = curve_points(curve)
    blocks: list[Block] = []
    if len(points):
        expected = curve if sweep.config.get("sampler") == "random" else None
        late = int(board["search_still_improving"].fillna(False).sum())
        gap = board["optimism_gap_points"].mean()
        caption = f"{late} of {len(board)} searches still improved in their second half."
        if board["validation_accuracy_percent"].notna().any():
            caption += (
                " Open marks at the right: what was chosen, trained again with fresh seeds (mean "
                "± standard deviation)."
            )
            if pd.notna(gap):
                caption += (
                    f" The search's best trial loses {gap:.1f} points on average when it is "
                    "trained again."
                    if gap > 0
                    else f" The search's best trial gains {-gap:.1f} points on average when it is "
                    "trained again, so the search was not too optimistic."
                )
        if expected is not None:
            caption += " Dotted: what fewer trials would have found on average."
        blocks.append(Picture("search", search_figure(points, board, expected), caption))
    else:
        blocks.append(Words("No figure: no trial has ended with a score yet.", "missing"))
    blocks += map(Words, unequal_searches(board))
    fixed = [not sweep.spaces.get(method) for method in board["method"]]
    blocks.append(
        Grid(
            "Trials by outcome and what they cost. Search luck: by how much a repeated search "
            "would move the result. Late gain: best of all trials minus best of the first half.",
            {
                "model": _texts(board["model"]),
                "method": [name_of(method) for method in board["method"]],
                "trials": _each(board["trials_started"], "d"),
                **{state: _each(board[f"trials_{state}"], "d") for state in STATES},
                "epochs": _each(board["search_epochs"], "d"),
                "device hours": _each(board["search_device_seconds"] / 3600, ".2f"),
                "search luck, points": [
                    "not searched" if known else luck
                    for known, luck in zip(
                        fixed, _each(board["search_luck_points"], ".2f"), strict=True
                    )
                ],
                "late gain, points": _each(board["late_gain_points"], ".2f"),
                "still improving": [
                    "" if pd.isna(value) else "yes" if value else "no"
                    for value in board["search_still_improving"]
                ],
            },
        )
    )
    return blocks


def settings(sweep: Sweep) -> list[Block]:
    """Good values of each method's settings, their importance, and whether they carry over."""
    table = sweep.known.get("settings", pd.DataFrame(columns=SETTINGS))
    if table.empty:
        why = "no trial has begun yet" if sweep.tables.trials.empty else "nothing was searched"
        return [Words(f"No settings to compare: {why}.", "missing")]
    summary, ranges = settings_summary(table), range_points(table, sweep.spaces)
    blocks: list[Block] = []
    for i, (method, own) in enumerate(summary.groupby("method", sort=False)):
        cells = table[table["method"] == method]
        models = list(dict.fromkeys(cells["model"]))
        drawn = ranges[ranges["method"] == method]
        shared = own.dropna(subset="low")
        if len(drawn):
            caption = f"{name_of(str(method))}: "
            if len(models) > 1:
                caption += (
                    f"good values of {len(shared)} of {len(own)} settings overlap on all "
                    "students (shaded)."
                )
            else:
                caption += f"where the good values on {models[0]} lie."
            caption += (
                " Bars: the middle 80 % of the values in the best fifth of the trials, at least "
                f"{LEAST_GOOD}; mark: the best trial's value."
            )
            blocks.append(Picture(f"settings-{i}", settings_figure(drawn), caption))
        else:
            blocks.append(
                Words(
                    f"{name_of(str(method))}, no figure: a range of good values takes "
                    f"{LEAST_GOOD} sound trials of a cell; `{sweep.command('resume')} --trials N` "
                    "adds trials.",
                    "missing",
                )
            )
        best = {(row.model, row.hyperparameter): _value(row.best) for row in cells.itertuples()}
        names = own["hyperparameter"].tolist()
        columns: dict[str, Sequence[str]] = {"setting": names}
        unknown = own["importance"].isna().all()
        if not unknown:
            columns["importance (mean, range)"] = [
                "" if pd.isna(mean) else f"{mean:.2f} ({low:.2f} to {high:.2f})"
                for mean, low, high in own[
                    ["importance", "importance_low", "importance_high"]
                ].to_numpy()
            ]
        if len(models) > 1:
            columns["recommended on all students"] = [
                "" if pd.isna(row.low) else f"{row.low:.3g} to {row.high:.3g}"
                for row in own.itertuples()
            ]
        for model in models:
            columns[f"best on {model}"] = [best.get((model, name), "") for name in names]
        blocks.append(
            Grid(
                f"{name_of(str(method))}. "
                + (
                    f"Importance is not told: it takes {LEAST_TRIALS} trials of a cell."
                    if unknown
                    else "Importance is the share of a setting in whether a trial is among the "
                    "better half at the first rung."
                ),
                columns,
            )
        )
    return blocks


def stopping(sweep: Sweep) -> list[Block]:
    """Whether the order of trials at a rung told that at the next."""
    if sweep.config.get("scheduler") == "none":
        return [Words("No trial was stopped early: the sweep had --scheduler none.", "missing")]
    rungs = sweep.known["rungs"]
    if rungs.empty:
        return [Words("No trial has reached a rung yet.", "missing")]
    means = (
        rungs.groupby(["method", "rung_epoch", "next_epoch"], sort=False)
        .agg(
            reached=("trials_reached", "sum"),
            promoted=("trials_promoted", "sum"),
            correlation=("correlation_all", "mean"),
            winner=("winner_rank_at_rung", "max"),
        )
        .reset_index()
    )
    return [
        Words(grace_advice(sweep.events)),
        Grid(
            "Rank correlation of the scores after one epoch with those after the next one, mean "
            "over students; 1 is the same order, 0 none. Empty where fewer than 10 trials of a "
            "cell went on.",
            {
                "method": [name_of(method) for method in means["method"]],
                "after epoch": _each(means["rung_epoch"], "d"),
                "next epoch": _each(means["next_epoch"], "d"),
                "trials that got there": _each(means["reached"], "d"),
                "went on": _each(means["promoted"], "d"),
                "rank correlation": _each(means["correlation"], ".2f"),
                "worst place of a later winner": _each(means["winner"], "d"),
            },
        ),
    ]


def failures(sweep: Sweep) -> list[Block]:
    """How trials ended, the most frequent errors, and the settings of what diverged."""
    board = sweep.tables.leaderboard
    if board.empty:
        return [Words("No trial has begun yet.", "missing")]
    counts = outcomes(board)
    diverged, crashed = int(counts["diverged"].sum()), int(counts["crashed"].sum())
    total = int(board["trials_started"].sum())
    caption = f"{diverged + crashed} of {total} trials failed"
    caption += f": {diverged} diverged, {crashed} crashed." if diverged + crashed else "."
    blocks: list[Block] = [Picture("failures", outcomes_figure(counts), caption)]
    errors = errors_table(sweep.tables.trials, sweep.tables.runs)
    if len(errors):
        blocks.append(
            Grid(
                "The most frequent errors; those that differ in numbers only are counted as one.",
                {
                    "status": _texts(errors["state"]),
                    "in words": _texts(errors["reason"]),
                    "trials": _each(errors["trials"], "d"),
                    "confirming runs": _each(errors["runs"], "d"),
                },
            )
        )
    apart = diverged_settings(sweep.tables.trials, sweep.spaces)
    if len(apart):
        blocks.append(
            Grid(
                "Settings of the trials that diverged, where they are furthest from the others.",
                {
                    "method": [name_of(method) for method in apart["method"]],
                    "setting": _texts(apart["hyperparameter"]),
                    "median of diverged": _each(apart["diverged_median"], ".3g"),
                    "median of the others": _each(apart["other_median"], ".3g"),
                },
            )
        )
    if note := bad_images_note(sweep.events):
        blocks.append(Words(note))
        bad = sweep.known["bad_images"].head(20)
        blocks.append(
            Grid("The first of them.", {name: _texts(bad[name]) for name in bad}, folded=True)
        )
    return blocks


FORMULAS = """\
x[i, s]   100 if image i is classified rightly with seed s, else 0; for a pair A minus B
m         mean of x;  a_i = mean over seeds;  b_s = mean over images;  n images, S seeds
MS_img    S * var(a),  MS_seed = n * var(b)
MS_res    sum((x - a_i - b_s + m)^2) / ((n - 1) * (S - 1))
V         MS_seed / (n * S) + max(MS_img - MS_res, 0) / (n * S) + v_search
df        V^2 / ((MS_seed / (n * S))^2 / (S - 1))
±         t(0.975, df) * sqrt(V)
v_search  luck_A^2 + luck_B^2; luck is the standard deviation of the best of B trials drawn anew"""


def reading(sweep: Sweep) -> list[Block]:
    """What the numbers cover, and how to have them again."""
    board, data = sweep.tables.leaderboard, sweep.opened[0]["data"]
    blocks: list[Block] = [
        Words(f"{COVERS} It does not cover another split, another teacher or other students."),
        Words(
            "Settings are chosen on validation images alone. The winner of a search is the "
            "luckiest of many trials; only what was trained again with fresh seeds is a result."
        ),
    ]
    if data.get("test_images"):
        tested = sweep.tested["test_accuracy_percent"]
        accuracy = min(max(tested.mean() / 100, 0.01), 0.99) if len(tested) else 0.75
        seeds = int(sweep.pair["seeds"].max()) if len(sweep.pair) else 0
        models = board["model"].nunique() or 1
        said = visible(data["test_images"], max(seeds, 3), models, accuracy)
        blocks.append(Words(f"What this data can show: {said}."))
    if len(sweep.tested):
        blocks.append(Words(test_reads(sweep.tables.runs)))
    blocks.append(Code("The interval", FORMULAS, folded=True))
    environment = sweep.opened[0].get("environment", {})
    versions = ", ".join(f"{n} {environment[n]}" for n in VERSIONS if n in environment)
    blocks.append(Words(f"Versions: {versions or 'not known'}."))
    commands = [
        f"kdtune sweep {shlex.quote(str(sweep.folder.sweep))} --name again",
        sweep.command("resume"),
        sweep.command("confirm"),
        sweep.command("report"),
        f"tensorboard --logdir {shlex.quote(str(sweep.folder.tensorboard))}",
    ]
    blocks.append(
        Code("Commands: repeat, go on, confirm, this page, single trials", "\n".join(commands))
    )
    for row in board.dropna(subset="configuration").itertuples():
        text = yaml.safe_dump(json.loads(row.configuration), sort_keys=False, allow_unicode=True)
        title = f"Configuration of {name_of(row.method)} on {row.model} ({row.trial_id}), as YAML"
        blocks.append(Code(title, text, folded=True))
    return blocks


SECTIONS: dict[str, tuple[str, str, Callable[[Sweep], list[Block]]]] = {
    "ship": ("What to ship", "Which student and method fit my speed limit?", ship),
    "search": ("Search", "Was the search fair and long enough?", search),
    "settings": ("Settings", "Which settings matter, and do they carry over?", settings),
    "stopping": ("Early stopping", "Could the rungs be trusted?", stopping),
    "failures": ("Failures", "What failed?", failures),
    "reading": ("How to read this", "What do the numbers cover?", reading),
}
"""Heading, question and content of the sections after verdict and leaderboard, by anchor."""


def _each(values: Iterable, form: str) -> list[str]:
    return ["" if pd.isna(value) else format(value, form) for value in values]


def _texts(values: Iterable) -> list[str]:
    return ["" if pd.isna(value) else str(value) for value in values]


def _value(value: object) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.3g}"
    return "" if value is None else str(value)


def _with_width(table: pd.DataFrame, value: str, width: str, sign: str = "") -> list[str]:
    return [
        "" if pd.isna(v) else f"{v:{sign}.2f}" if pd.isna(w) else f"{v:{sign}.2f} ± {w:.2f}"
        for v, w in zip(table[value], table[width], strict=True)
    ]
