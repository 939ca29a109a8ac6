"""What a report says of a sweep after its verdict, section by section.

A section without data is one sentence that says why, and what would add it.
"""

import json
import shlex
from collections.abc import Callable, Sequence

import pandas as pd
import yaml

from kdtune.log import STATES
from kdtune.reports.blocks import Block, Code, Grid, Picture, Words, each, in_short, texts
from kdtune.reports.curves import CURVE
from kdtune.reports.failures import diverged_settings, errors_table
from kdtune.reports.figures import outcomes_figure, search_figure, settings_figure, ship_figure
from kdtune.reports.loaded import Sweep
from kdtune.reports.planned import planned
from kdtune.reports.points import (
    curve_points,
    outcomes,
    range_points,
    settings_summary,
    ship_points,
)
from kdtune.reports.render import (
    CAVEAT,
    COVERS,
    NOT_BEGUN,
    test_reads,
    unequal_searches,
    with_width,
)
from kdtune.reports.rungs import advise
from kdtune.reports.settings import LEAST_GOOD, LEAST_TRIALS, SETTINGS
from kdtune.reports.statistics import name_of, visible
from kdtune.reports.tables import bad_images_note

VERSIONS = ("kdtune", "python", "torch", "ray", "optuna", "platform")


def leaderboard(board: pd.DataFrame) -> list[Block]:
    """The table of a sweep, or of comparable ones, grouped by model.

    Args:
        board: as `kdtune.reports.leaderboard.join_sweeps` makes it.
    """
    if board.empty:
        return [Words(NOT_BEGUN, "missing")]
    tested = board["test_accuracy_percent"].notna()
    seconds = board["search_device_seconds"] + board["confirm_device_seconds"].fillna(0)
    score = "search score, % (not a result)"
    columns: dict[str, Sequence[str] | None] = {
        "sweep": texts(board["sweep"]) if "sweep" in board else None,
        "model": texts(board["model"]),
        "rank": each(board["rank"], "d") if tested.any() else None,
        "method": [name_of(method) for method in board["method"]],
        "test accuracy, %": with_width(board, "test_accuracy_percent", "test_half_width_points")
        if tested.any()
        else None,
        "gain over student, points": with_width(
            board, "gain_over_student_points", "gain_over_student_half_width_points", "+"
        )
        if board["gain_over_student_points"].notna().any()
        else None,
        score: each(board["search_best_percent"].mask(tested), ".2f")
        if not tested.all()
        else None,
        "optimism of the search, points": each(board["optimism_gap_points"], ".2f")
        if tested.any()
        else None,
        "seeds": each(board["seeds_ok"], "d") if tested.any() else None,
        "status": [s.replace("_", " ") for s in board["status"]]
        if (board["status"] != "ok").any()
        else None,
        "trials": each(board["trials_started"], "d"),
        "device hours": each(seconds / 3600, ".2f"),
        "settings": texts(board["settings"]),
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
        return [Words("No cell has a sound trial yet.", "missing", "ship")]
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
            "side by side. The line joins what no other beats for less, by figures."
            f"{'' if teacher is not None else _unknown_teacher(sweep, test)}"
        )
        blocks.append(Picture("ship", figure, caption))
    else:
        blocks.append(
            Words(
                "No figure: what the students cost is measured when the sweep is confirmed; run "
                f"`{sweep.command('confirm')}`.",
                "missing",
                "ship",
            )
        )
    costs = sweep.tables.models
    if len(costs):
        measured = ", ".join(sorted({*texts(costs["latency_device"])} - {""}))
        blocks.append(
            Grid(
                "The student alone, without teacher; the median time for one image on "
                f"{measured or 'an unknown device'}. A student is unbeaten in a cost if no other "
                "is as accurate for less of it, by figures, not by intervals.",
                {
                    "model": texts(costs["model"]),
                    "parameters": each(costs["parameters"], ",d"),
                    "multiply-adds for one image": each(costs["macs"], ",d"),
                    "milliseconds for one image": each(costs["latency_ms"], ".2f"),
                    "unbeaten in": [_unbeaten(points, model) for model in costs["model"]],
                },
            )
        )
    return blocks


def _unbeaten(points: pd.DataFrame, model: str) -> str:
    own = points[points["model"] == model]
    words = {
        "front_parameters": "parameters",
        "front_macs": "multiply-adds",
        "front_latency": "milliseconds",
    }
    return ", ".join(word for column, word in words.items() if own[column].any())


def _unknown_teacher(sweep: Sweep, test: bool) -> str:
    if not test or not sweep.opened[0].get("teacher"):
        return ""
    return " No line for the teacher: its test accuracy is not known."


def search(sweep: Sweep) -> list[Block]:
    """How each search got on, and what it was given."""
    board = sweep.tables.leaderboard
    if board.empty:
        return [Words(NOT_BEGUN, "missing", "search")]
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
        why = "No figure: no trial has ended with a score yet."
        blocks.append(Words(why, "missing", "search"))
    blocks += map(Words, unequal_searches(board))
    fixed = [not sweep.spaces.get(method) for method in board["method"]]
    blocks.append(
        Grid(
            "Trials by outcome and what they cost. Search luck: by how much a repeated search "
            "would move the result. Late gain: best of all trials minus best of the first half.",
            {
                "model": texts(board["model"]),
                "method": [name_of(method) for method in board["method"]],
                "trials": each(board["trials_started"], "d"),
                **{state: each(board[f"trials_{state}"], "d") for state in STATES},
                "epochs": each(board["search_epochs"], "d"),
                "device hours": each(board["search_device_seconds"] / 3600, ".2f"),
                "search luck, points": [
                    "not searched" if known else luck
                    for known, luck in zip(
                        fixed, each(board["search_luck_points"], ".2f"), strict=True
                    )
                ],
                "late gain, points": each(board["late_gain_points"], ".2f"),
                "still improving": [
                    "" if pd.isna(value) else "yes" if value else "no"
                    for value in board["search_still_improving"]
                ],
            },
        )
    )
    return blocks + planned(sweep.folder)


def settings(sweep: Sweep) -> list[Block]:
    """Good values of each method's settings, their importance, and whether they carry over."""
    table = sweep.known.get("settings", pd.DataFrame(columns=SETTINGS))
    if table.empty:
        why = "no trial has begun yet" if sweep.tables.trials.empty else "nothing was searched"
        return [Words(f"No settings to compare: {why}.", "missing", "settings")]
    summary, ranges = settings_summary(table), range_points(table, sweep.spaces)
    blocks: list[Block] = []
    for method, own in summary.groupby("method", sort=False):
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
            blocks.append(Picture(f"settings-{method}", settings_figure(drawn), caption))
        else:
            blocks.append(
                Words(
                    f"{name_of(str(method))}, no figure: a range of good values takes "
                    f"{LEAST_GOOD} sound trials of a cell; `{sweep.command('resume')} --trials N` "
                    "adds trials.",
                    "missing",
                    f"settings-{method}",
                )
            )
        best = {(row.model, row.hyperparameter): in_short(row.best) for row in cells.itertuples()}
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
        Words(advise(rungs, sweep.opened[0]["config"]["grace_period"])),
        Grid(
            "Rank correlation of the scores after one epoch with those after the next one, mean "
            "over students; 1 is the same order, 0 none. Empty where fewer than 10 trials of a "
            "cell went on.",
            {
                "method": [name_of(method) for method in means["method"]],
                "after epoch": each(means["rung_epoch"], "d"),
                "next epoch": each(means["next_epoch"], "d"),
                "trials that got there": each(means["reached"], "d"),
                "went on": each(means["promoted"], "d"),
                "rank correlation": each(means["correlation"], ".2f"),
                "worst place of a later winner": each(means["winner"], "d"),
            },
        ),
    ]


def failures(sweep: Sweep) -> list[Block]:
    """How trials ended, the most frequent errors, and the settings of what diverged."""
    board = sweep.tables.leaderboard
    if board.empty:
        return [Words(NOT_BEGUN, "missing", "failures")]
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
                    "status": texts(errors["state"]),
                    "in words": texts(errors["reason"]),
                    "trials": each(errors["trials"], "d"),
                    "confirming runs": each(errors["runs"], "d"),
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
                    "setting": texts(apart["hyperparameter"]),
                    "median of diverged": each(apart["diverged_median"], ".3g"),
                    "median of the others": each(apart["other_median"], ".3g"),
                },
            )
        )
    if note := bad_images_note(sweep.events):
        blocks.append(Words(note))
        bad = sweep.known["bad_images"].head(20)
        blocks.append(
            Grid("The first of them.", {name: texts(bad[name]) for name in bad}, folded=True)
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
        sweep.command("dashboard"),
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
