"""The section on which settings matter."""

from collections.abc import Sequence

import pandas as pd

from kdtune.reports.loaded_sweep import LoadedSweep
from kdtune.reports.page.blocks import Block, FigureBlock, Paragraph, TableBlock, format_setting
from kdtune.reports.page.figures import plot_setting_ranges
from kdtune.reports.tables.columns import MIN_GOOD_TRIALS, MIN_IMPORTANCE_TRIALS, SETTINGS
from kdtune.reports.tables.figure_data import setting_ranges, settings_summary
from kdtune.reports.tables.sentences import display_name


def settings_section(sweep: LoadedSweep) -> list[Block]:
    """Good values of each method's settings, their importance, and whether they carry over."""
    table = sweep.named_tables.get("settings", SETTINGS.make_frame())
    if table.empty:
        reason = (
            "no trial has started yet" if sweep.tables.trials.empty else "nothing was searched"
        )
        return [Paragraph(f"No settings to compare: {reason}.", "missing", "settings")]
    summary, ranges = settings_summary(table), setting_ranges(table, sweep.spaces)
    blocks: list[Block] = []
    for method, rows in summary.groupby("method", sort=False):
        method_settings = table[table["method"] == method]
        models = list(dict.fromkeys(method_settings["model"]))
        method_ranges = ranges[ranges["method"] == method]
        shared = rows.dropna(subset="low")
        if len(method_ranges):
            caption = f"{display_name(str(method))}: "
            if len(models) > 1:
                caption += (
                    f"good values of {len(shared)} of {len(rows)} settings overlap on all "
                    "students (shaded)."
                )
            else:
                caption += f"where the good values on {models[0]} lie."
            caption += (
                " Bars: the middle 80 % of the values in the best fifth of the trials, at least "
                f"{MIN_GOOD_TRIALS}; mark: the best trial's value."
            )
            blocks.append(
                FigureBlock(f"settings-{method}", plot_setting_ranges(method_ranges), caption)
            )
        else:
            blocks.append(
                Paragraph(
                    f"{display_name(str(method))}, no figure: a range of good values takes "
                    f"{MIN_GOOD_TRIALS} sound trials of a cell; `{sweep.command('resume')} --trials N` "
                    "adds trials.",
                    "missing",
                    f"settings-{method}",
                )
            )
        best_values = {
            (row.model, row.hyperparameter): format_setting(row.best)
            for row in method_settings.itertuples()
        }
        names = rows["hyperparameter"].tolist()
        columns: dict[str, Sequence[str]] = {"setting": names}
        is_importance_unknown = rows["importance"].isna().all()
        if not is_importance_unknown:
            columns["importance (mean, range)"] = [
                "" if pd.isna(mean) else f"{mean:.2f} ({low:.2f} to {high:.2f})"
                for mean, low, high in rows[
                    ["importance", "importance_low", "importance_high"]
                ].to_numpy()
            ]
        if len(models) > 1:
            columns["recommended on all students"] = [
                "" if pd.isna(row.low) else f"{row.low:.3g} to {row.high:.3g}"
                for row in rows.itertuples()
            ]
        for model in models:
            columns[f"best on {model}"] = [best_values.get((model, name), "") for name in names]
        blocks.append(
            TableBlock(
                f"{display_name(str(method))}. "
                + (
                    f"Importance is not told: it takes {MIN_IMPORTANCE_TRIALS} trials of a cell."
                    if is_importance_unknown
                    else "Importance is the share of a setting in whether a trial is among the "
                    "better half at the first rung."
                ),
                columns,
            )
        )
    return blocks
