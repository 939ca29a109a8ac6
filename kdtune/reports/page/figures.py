"""Figures of a report: matplotlib figures from tables."""

from collections.abc import Iterable
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from kdtune.config.sweep import BASELINES
from kdtune.reports.page.rendering import (
    BAND_COLOUR,
    FIGURE_WIDTH_INCHES,
    METHOD_STYLES,
    MUTED_COLOUR,
    OTHER_METHOD_COLOUR,
    RC_PARAMS,
    TEXT_COLOUR,
    ReportFigure,
)
from kdtune.reports.tables.comparison import ALL_MODELS
from kdtune.reports.tables.sentences import display_name, format_interval

OTHER_METHOD_MARKERS = ("v", "P", "X", "*", "<", ">", "p", "h", "d")
"""Markers of plug-ins' methods, which share one colour."""

STATE_COLOURS = dict(
    finished="#0072b2", stopped="#8fbfdc", diverged="#d55e00", crashed="#6b6b6b", running="#e9e9e9"
)

METHOD_OFFSET_INCHES = 0.13  # between the marks of two methods on one student
MAX_NAME_LETTERS = 24


def method_styles(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return colour and marker of each method, baselines last."""
    names = list(dict.fromkeys(methods))
    others = zip((m for m in names if m not in METHOD_STYLES), cycle(OTHER_METHOD_MARKERS))
    styles = METHOD_STYLES | {m: (OTHER_METHOD_COLOUR, marker) for m, marker in others}
    return {m: styles[m] for m in sorted(styles, key=BASELINES.__contains__) if m in names}


def truncate_name(name: str) -> str:
    """Shorten a name to fit beside an axis."""
    return name if len(name) <= MAX_NAME_LETTERS else f"{name[: MAX_NAME_LETTERS - 1]}…"


def method_label(method: str) -> str:
    """Return the name of a method in figures."""
    return truncate_name(display_name(method))


@rc_context(RC_PARAMS)
def plot_verdict(pair: pd.DataFrame, seeds: pd.DataFrame) -> Figure:
    """Plot the difference of two methods by model, with its 95 % interval and that of each seed.

    Args:
        pair: rows of `kdtune.reports.tables.comparison.select_main_pair` that have a difference.
        seeds: result of `kdtune.reports.tables.figure_data.seed_differences`.
    """
    figure, axes = _single_panel(0.62 * len(pair) + 1.1)
    first = pair.iloc[0]
    a, b = method_label(first["method_a"]), method_label(first["method_b"])
    min_difference = first["min_difference_points"]
    axes.axvspan(-min_difference, min_difference, color=BAND_COLOUR, linewidth=0)
    axes.axvline(0, color=TEXT_COLOUR, linewidth=1)
    for y, row in enumerate(pair.itertuples()):
        marker = "D" if row.model == ALL_MODELS else "o"
        value, width = row.difference_points, row.half_width_points
        axes.errorbar(value, y, xerr=width, color=TEXT_COLOUR, marker=marker, capsize=4, ms=7)
        seed_points = seeds.loc[seeds["model"] == row.model, "difference_points"]
        rows = np.full(len(seed_points), y + 0.27)
        circle: Any = {"facecolors": "none", "edgecolors": MUTED_COLOUR, "linewidth": 1}
        axes.scatter(seed_points, rows, s=16, **circle)
        text = format_interval(value, width)
        axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center")
    names = pair["model"].replace(ALL_MODELS, "all students")
    _label_rows(axes, names.map(truncate_name).tolist())
    axes.set_xlabel(f"{a} minus {b}, points of test accuracy\n← {b} better  |  {a} better →")
    return figure


@rc_context(RC_PARAMS)
def plot_accuracy_vs_cost(
    points: pd.DataFrame, cost: str, teacher_percent: float | None = None
) -> Figure:
    """Plot the accuracy of each cell against the cost of its student; the ship set is filled.

    Args:
        points: result of `kdtune.reports.tables.figure_data.accuracy_vs_cost`.
        cost: ``latency_ms`` or ``macs``.
        teacher_percent: the teacher's accuracy in percent, on the same images.
    """
    figure, axes = _single_panel(3.6)
    methods = method_styles(points["method"])
    front = points[points["pareto"]].sort_values(cost)
    x, y = front[cost].astype(float), front["accuracy_percent"]
    axes.step(x, y, where="post", color=MUTED_COLOUR, linewidth=1, zorder=0)
    axes.set_xscale("log")
    axes.set_xlim(points[cost].min() / 1.6, points[cost].max() * 1.6)
    for i, (method, (colour, marker)) in enumerate(methods.items()):
        # Methods on one student have the same cost, so their marks are drawn side by side.
        offset = (i - (len(methods) - 1) / 2) * METHOD_OFFSET_INCHES
        shifted = axes.transData + ScaledTranslation(offset, 0, figure.dpi_scale_trans)
        style: Any = {**_mark_style(colour, marker), "ms": 7}
        axes.errorbar([], [], [], **style, label=method_label(method))  # filled in the legend
        _draw_cells(axes, points[points["method"] == method], cost, transform=shifted, **style)
    labelled_points = points.assign(top=points["high_percent"].fillna(points["accuracy_percent"]))
    for model, cells in labelled_points.groupby("model"):
        top = cells[cost].iloc[0], cells["top"].max()
        _annotate(axes, truncate_name(str(model)), top, (0, 7), ha="center")
    if teacher_percent is not None:
        axes.axhline(teacher_percent, color=MUTED_COLOUR, linestyle="--", linewidth=1)
        style = {"xycoords": axes.get_yaxis_transform(), "color": MUTED_COLOUR, "va": "center"}
        text = f"teacher {teacher_percent:.1f} %"
        _annotate(axes, text, (1, teacher_percent), (4, 0), **style)  # beside all other labels
    # Marks that are moved aside do not widen the axis by themselves.
    values = points[["low_percent", "accuracy_percent", "high_percent"]].to_numpy(float)
    values = np.append(values, np.nan if teacher_percent is None else teacher_percent)
    low, high = np.nanmin(values), np.nanmax(values)
    margin = 0.15 * max(high - low, 1)
    axes.set_ylim(low - margin, high + margin)
    _format_log_axis(axes)
    unit = "milliseconds" if cost == "latency_ms" else "multiply-adds"
    axes.set_xlabel(f"{unit} for one image (logarithmic)")
    is_test = points["split"].iloc[0] == "test"
    axes.set_ylabel("test accuracy, %" if is_test else "search score (validation), %")
    _add_legend(figure, axes)
    return figure


def _draw_cells(axes: Axes, cells: pd.DataFrame, cost: str, **style: Any) -> None:
    """Draw cells of one method with their intervals; the best has a ring."""
    for row in cells.to_dict("records"):
        value, low, high = (row[f"{name}_percent"] for name in ("accuracy", "low", "high"))
        errors = np.nan_to_num([[value - low], [high - value]])
        fill = style["color"] if row["filled"] else "none"
        axes.errorbar(float(row[cost]), value, errors, mfc=fill, **style)
        if row["in_ship_set"] == "best":
            ring: Any = {"marker": "o", "ms": 14, "mfc": "none", "color": TEXT_COLOUR}
            axes.plot(float(row[cost]), value, transform=style["transform"], **ring)


@rc_context(RC_PARAMS)
def plot_search_curves(
    curve: pd.DataFrame, leaderboard: pd.DataFrame, expected: pd.DataFrame | None = None
) -> Figure:
    """Plot the best score so far against epochs, one panel per model.

    Args:
        curve: result of `kdtune.reports.tables.figure_data.search_curve_steps`.
        leaderboard: of the same cells; mean and deviation over fresh seeds are drawn at the right.
        expected: the search curve table of a random search, whose expected curve is drawn, too.
    """
    models = list(dict.fromkeys(curve["model"]))
    figure, panels = _make_panels(len(models), 2.5)
    methods = method_styles(curve["method"])
    for axes, model in zip(panels, models, strict=True):
        last_epoch = curve.loc[curve["model"] == model, "epochs"].max()
        for i, (method, (colour, marker)) in enumerate(methods.items()):
            cell_curve = _of_cell(curve, model, method)
            x, y = cell_curve["epochs"], cell_curve["best_percent"]
            last = [len(x) - 1] if len(x) else []
            style: Any = {"color": colour, "marker": marker, "label": method_label(method)}
            axes.step(x, y, where="post", markevery=last, **style)
            if expected is not None:
                mean = _of_cell(expected, model, method)
                mean = mean[["expected_epochs", "expected_best_percent"]].to_numpy().T
                axes.plot(*mean, color=colour, linestyle=":", linewidth=1)
            row = _of_cell(leaderboard, model, method)
            x, y = [last_epoch * (1.06 + 0.035 * i)] * len(row), row["validation_accuracy_percent"]
            deviations = row["validation_seed_sd_points"].fillna(0)
            axes.errorbar(x, y, deviations, mfc="none", **_mark_style(colour, marker))
        axes.set_title(truncate_name(model))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("best validation, %")
    panels[-1].set_xlabel("epochs spent by the cell")
    _add_legend(figure, panels[0])
    return figure


def _of_cell(table: pd.DataFrame, model: str, method: str) -> pd.DataFrame:
    return table[(table["model"] == model) & (table["method"] == method)]


@rc_context(RC_PARAMS)
def plot_setting_ranges(ranges: pd.DataFrame) -> Figure:
    """Plot the `setting_ranges` of one method, by setting and model; the overlap is shaded."""
    names = list(dict.fromkeys(ranges["hyperparameter"]))
    models = list(dict.fromkeys(ranges["model"]))
    [(colour, marker)] = method_styles(ranges["method"]).values()
    figure, panels = _make_panels(-(-len(names) // 2), 0.3 * len(models) + 0.75, columns=2)
    for axes, name in zip(panels, names, strict=False):
        setting_rows = ranges[ranges["hyperparameter"] == name]
        low, high = setting_rows["good_low"].max(), setting_rows["good_high"].min()
        if len(setting_rows) == len(models) > 1 and low <= high:
            axes.axvspan(low, high, color=BAND_COLOUR, linewidth=0)
        for row in setting_rows.itertuples():
            y = models.index(row.model)
            axes.plot([row.good_low, row.good_high], [y, y], color=colour, linewidth=4, alpha=0.5)
            axes.plot(row.best, y, color=colour, marker=marker, markersize=7)
        title = truncate_name(name)
        if setting_rows["log"].all():
            title += " (logarithmic)"
            axes.set_xscale("log")
            _format_log_axis(axes)
        axes.set_title(title)
        _label_rows(axes, [truncate_name(model) for model in models])
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    return figure


@rc_context(RC_PARAMS)
def plot_outcomes(counts: pd.DataFrame) -> Figure:
    """Plot the numbers of trials of each cell by state, from `count_outcomes`."""
    figure, axes = _single_panel(0.34 * len(counts) + 1.0)
    y, bar_starts = np.arange(len(counts)), np.zeros(len(counts))
    for state, colour in STATE_COLOURS.items():
        width = counts[state].to_numpy(float)
        if width.any():
            axes.barh(y, width, left=bar_starts, color=colour, height=0.7, label=state)
        bar_starts = bar_starts + width
    for i, numbers in enumerate(counts[list(STATE_COLOURS)].to_dict("records")):
        text = ", ".join(f"{number} {state}" for state, number in numbers.items() if number)
        _annotate(axes, text, (bar_starts[i], i), (6, 0), va="center", fontsize=8.5)
    cells = zip(counts["method"], counts["model"], strict=True)
    _label_rows(axes, [f"{method_label(a)}, {truncate_name(b)}" for a, b in cells])
    max_trials = bar_starts.max()
    ticks = MaxNLocator(4, integer=True).tick_values(0, max_trials)
    axes.set_xticks(ticks[ticks <= max_trials])
    axes.set_xlim(0, 2.3 * max_trials)  # room for the labels
    axes.set_xlabel("trials")
    _add_legend(figure, axes)
    return figure


def _single_panel(height: float) -> tuple[Figure, Axes]:
    figure, [axes] = _make_panels(1, height)
    return figure, axes


def _make_panels(rows: int, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = ReportFigure(figsize=(FIGURE_WIDTH_INCHES, rows * height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, sharey=columns > 1).flat)


def _mark_style(colour: str, marker: str) -> dict[str, Any]:
    return {"color": colour, "marker": marker, "linestyle": "none", "capsize": 3}


def _annotate(axes: Axes, text: str, point: Any, offset: tuple[int, int], **style: Any) -> None:
    axes.annotate(text, point, xytext=offset, textcoords="offset points", **style)


def _label_rows(axes: Axes, names: list[str]) -> None:
    """Name the rows of a figure, the first one on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _format_log_axis(axes: Axes) -> None:
    low, high = axes.get_xlim()
    if high / low < 5:
        axes.xaxis.set_major_locator(MaxNLocator(3))
    else:
        subs = (1, 2, 5) if high / low < 50 else (1, 3) if high / low < 1000 else (1,)
        axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _add_legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=5, handlelength=1.6)
