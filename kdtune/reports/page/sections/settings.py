"""Section: which settings matter, and do they carry over."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from kdtune.reports.loaded_sweep import LoadedSweep
from kdtune.reports.page.blocks import Block, FigureBlock, Paragraph, TableBlock
from kdtune.reports.page.figures import plot_setting_ranges
from kdtune.reports.tables.columns import (
    LOSS_SCALES,
    MIN_GOOD_TRIALS,
    MIN_IMPORTANCE_TRIALS,
    SETTINGS,
)
from kdtune.reports.tables.figure_data import setting_ranges, settings_summary
from kdtune.reports.tables.sentences import display_name
from kdtune.reports.tables.settings import range_end_note

BARS = (
    "Bars: the middle 80 % of the values in the best fifth of the tried settings, at least "
    f"{MIN_GOOD_TRIALS}; mark: the value in the best settings."
)
IMPORTANCE = (
    "Importance: the share of a setting in whether a trial is in the better half at the first "
    "rung."
)
SCALES = (
    "Strengths. Scale: a term at weight 1 over the classification loss, both of the untrained "
    "student. A strength is weight times scale, so in each cell it is another weight."
)
NO_IMPORTANCE = f"Importance needs {MIN_IMPORTANCE_TRIALS} trials of a cell."


def settings_section(sweep: LoadedSweep) -> Iterator[Block]:
    """Yield good values of each method's settings, their importance, and their overlap."""
    table = sweep.named_tables.get("settings", SETTINGS.make_frame())
    if table.empty:
        no_trials = sweep.tables.trials.empty
        reason = "no trial has started yet" if no_trials else "nothing was searched"
        yield Paragraph(f"No settings to compare: {reason}.", "missing", "settings")
        return
    ranges = setting_ranges(table, sweep.spaces)
    for method, summary in settings_summary(table).groupby("method", sort=False):
        name, settings = display_name(str(method)), table[table["method"] == method]
        models = list(dict.fromkeys(settings["model"]))
        method_ranges = ranges[ranges["method"] == method]
        if len(method_ranges):
            shared = len(summary.dropna(subset="low"))
            result = f"good values of {shared} of {len(summary)} settings overlap on all students"
            result = f"{result} (shaded)" if len(models) > 1 else f"good values on {models[0]}"
            figure = plot_setting_ranges(method_ranges)
            yield FigureBlock(f"settings-{method}", figure, f"{name}: {result}. {BARS}")
        else:
            text = (
                f"{name}, no figure: a range of good values needs {MIN_GOOD_TRIALS} successful "
                f"trials of a cell; `{sweep.command('resume')} --trials N` adds trials."
            )
            yield Paragraph(text, "missing", f"settings-{method}")
        has_importance = summary["importance"].notna().any()
        caption = f"{name}. {IMPORTANCE if has_importance else NO_IMPORTANCE}"
        yield TableBlock(caption, _columns(summary, settings, models))
    if (note := range_end_note(sweep.tables.trials, sweep.spaces)) is not None:
        yield Paragraph(note)
    if (scales := sweep.named_tables.get("loss_scales")) is not None:
        shown = scales.assign(method=scales["method"].map(display_name))
        yield TableBlock(SCALES, LOSS_SCALES.to_texts(shown, *LOSS_SCALES.names))


def _columns(
    summary: pd.DataFrame, settings: pd.DataFrame, models: Sequence[str]
) -> dict[str, Sequence[str]]:
    names = summary["hyperparameter"].tolist()
    columns: dict[str, Sequence[str]] = {"setting": names}
    if summary["importance"].notna().any():
        importances = summary[["importance", "importance_low", "importance_high"]].to_numpy()
        columns["importance (mean, range)"] = [
            "" if pd.isna(mean) else f"{mean:.2f} ({low:.2f} to {high:.2f})"
            for mean, low, high in importances
        ]
    if len(models) > 1 and summary["low"].notna().any():
        ranges = zip(summary["low"], summary["high"], strict=True)
        texts = ["" if pd.isna(low) else f"{low:.3g} to {high:.3g}" for low, high in ranges]
        columns["recommended on all students"] = texts
    best = settings.set_index(["model", "hyperparameter"])["best"].to_dict()
    for model in models:
        columns[f"best on {model}"] = [_format_value(best.get((model, name))) for name in names]
    return columns


def _format_value(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return "" if pd.isna(value) else text
