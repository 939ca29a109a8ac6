"""The section on which settings matter."""

from collections.abc import Sequence

import pandas as pd

from kdtune.reports.loaded_sweep import Sweep
from kdtune.reports.page.blocks import Block, Grid, Picture, Words, in_short
from kdtune.reports.page.figures import (
    settings_figure,
)
from kdtune.reports.tables.figure_data import (
    range_points,
    settings_summary,
)
from kdtune.reports.tables.sentences import name_of
from kdtune.reports.tables.settings import LEAST_GOOD, LEAST_TRIALS, SETTINGS


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
