"""Figures of a report: tables in, matplotlib figures out, and these as SVG inside a page.

Object-oriented throughout: no pyplot, no display, no state. Names are drawn as they are, cut where
they are long; nothing in them is taken for mathematics.
"""

import io
import re
import warnings
from collections.abc import Iterable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from kdtune.config.methods import BUILTIN_METHODS
from kdtune.config.sweep import BASELINES
from kdtune.reports.tables.comparison import ALL_MODELS
from kdtune.reports.tables.sentences import display_name, format_points

TEXT_COLOUR, MUTED_COLOUR, GRID_COLOUR, BAND_COLOUR = "#1b1b1b", "#6b6b6b", "#d8d8d8", "#e9e9e9"
OTHER_METHOD_COLOUR = "#cc79a7"
METHOD_STYLES = {name: (info.colour, info.marker) for name, info in BUILTIN_METHODS.items()}
"""Colour and marker of a method, for eyes of every kind."""

OTHER_METHOD_MARKERS = ("v", "P", "X", "*", "<", ">", "p", "h", "d")
"""Of further methods, which share a colour."""

STATE_COLOURS = {
    "finished": "#0072b2",
    "stopped": "#8fbfdc",
    "diverged": "#d55e00",
    "crashed": "#6b6b6b",
    "running": "#e9e9e9",
}

CSS_VARIABLES = {
    TEXT_COLOUR: "ink",
    MUTED_COLOUR: "soft",
    GRID_COLOUR: "grid",
    BAND_COLOUR: "band",
    OTHER_METHOD_COLOUR: "further",
    "#8fbfdc": "stopped",
    **{colour: method for method, (colour, _) in METHOD_STYLES.items()},
}
"""CSS variables that take the place of colours, so that a page can be dark."""

RC_PARAMS: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED_COLOUR,
    "axes.grid": True,
    "axes.labelcolor": TEXT_COLOUR,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "grid.color": GRID_COLOUR,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "kdtune",
    "text.color": TEXT_COLOUR,
    "text.parse_math": False,
    "text.usetex": False,
    "xtick.color": MUTED_COLOUR,
    "xtick.labelcolor": TEXT_COLOUR,
    "ytick.color": MUTED_COLOUR,
    "ytick.labelcolor": TEXT_COLOUR,
}
FIGURE_WIDTH_INCHES = 7.2
"""Of every figure, in inches."""

METHOD_OFFSET_INCHES = 0.13
"""Between methods of one student, in inches."""

MAX_NAME_LETTERS = 24
"""Letters of a name that are drawn."""

ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


class ReportFigure(Figure):
    """A matplotlib figure that a notebook shows; pyplot, which needs a display, has no part."""

    def _repr_png_(self) -> tuple[bytes, dict[str, float]]:
        return render_file(self, "png"), {"width": 100 * FIGURE_WIDTH_INCHES}


def method_styles(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method, baselines last.

    >>> method_styles(["at", "mine"])
    {'at': ('#0072b2', 'o'), 'mine': ('#cc79a7', 'v')}
    """
    names = list(dict.fromkeys(methods))
    other_methods = [method for method in names if method not in METHOD_STYLES]
    markers = {
        method: OTHER_METHOD_MARKERS[i % len(OTHER_METHOD_MARKERS)]
        for i, method in enumerate(other_methods)
    }
    styles = {
        **METHOD_STYLES,
        **{method: (OTHER_METHOD_COLOUR, markers[method]) for method in other_methods},
    }
    return {m: styles[m] for m in sorted(styles, key=BASELINES.__contains__) if m in names}


def truncate_name(name: str) -> str:
    """A name that fits beside an axis.

    >>> truncate_name("a" * 30)
    'aaaaaaaaaaaaaaaaaaaaaaa…'
    """
    return name if len(name) <= MAX_NAME_LETTERS else f"{name[: MAX_NAME_LETTERS - 1]}…"


def method_label(method: str) -> str:
    """A method as figures call it."""
    return truncate_name(display_name(method))


@rc_context(RC_PARAMS)
def plot_verdict(pair: pd.DataFrame, seeds: pd.DataFrame) -> Figure:
    """Difference of two methods by model, with its 95 % interval and each seed's.

    Args:
        pair: rows of `kdtune.reports.tables.comparison.select_main_pair` that have a difference.
        seeds: as `kdtune.reports.tables.figure_data.seed_differences` makes it.
    """
    figure, axes = _single_panel(0.62 * len(pair) + 1.1)
    first = pair.iloc[0]
    a, b = method_label(first["method_a"]), method_label(first["method_b"])
    min_difference = first["min_difference_points"]
    axes.axvspan(-min_difference, min_difference, color=BAND_COLOUR, linewidth=0)
    axes.axvline(0, color=TEXT_COLOUR, linewidth=1)
    for y, row in enumerate(pair.itertuples()):
        axes.errorbar(
            row.difference_points,
            y,
            xerr=row.half_width_points,
            color=TEXT_COLOUR,
            marker="D" if row.model == ALL_MODELS else "o",
            markersize=7,
            capsize=4,
        )
        seed_points = seeds.loc[seeds["model"] == row.model, "difference_points"]
        axes.scatter(
            seed_points,
            np.full(len(seed_points), y + 0.27),
            s=16,
            facecolors="none",
            edgecolors=MUTED_COLOUR,
            linewidth=1,
        )
        value, width = row.difference_points, row.half_width_points
        text = f"{format_points(value, width)} ± {format_points(width, width)}"
        axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center")
    _label_rows(
        axes,
        [
            "all students" if model == ALL_MODELS else truncate_name(model)
            for model in pair["model"]
        ],
    )
    axes.set_xlabel(f"{a} minus {b}, points of test accuracy\n← {b} better  |  {a} better →")
    return figure


@rc_context(RC_PARAMS)
def plot_accuracy_vs_cost(points: pd.DataFrame, teacher_percent: float | None = None) -> Figure:
    """Accuracy of each cell against what its student costs.

    Args:
        points: rows of `kdtune.reports.tables.figure_data.accuracy_vs_cost_table` with a latency, or
            else with MACs.
        teacher_percent: its accuracy in percent, on the same images.
    """
    figure, axes = _single_panel(3.6)
    cost = "latency_ms" if points["latency_ms"].notna().any() else "macs"
    unit = "milliseconds for one image" if cost == "latency_ms" else "multiply-adds for one image"
    methods = method_styles(points["method"])
    front = points[points[f"front_{cost.removesuffix('_ms')}"]].sort_values(cost)
    axes.step(
        front[cost].astype(float),
        front["accuracy_percent"],
        where="post",
        color=MUTED_COLOUR,
        linewidth=1,
        zorder=0,
    )
    axes.set_xscale("log")
    axes.set_xlim(points[cost].min() / 1.6, points[cost].max() * 1.6)
    for i, (method, (colour, marker)) in enumerate(methods.items()):
        cells = points[points["method"] == method]
        low, high = cells["low_percent"], cells["high_percent"]
        values = cells["accuracy_percent"]
        # Methods of one student cost the same.
        offset = (i - (len(methods) - 1) / 2) * METHOD_OFFSET_INCHES
        axes.errorbar(
            cells[cost].astype(float),
            values,
            yerr=[(values - low).fillna(0), (high - values).fillna(0)],
            color=colour,
            marker=marker,
            markersize=7,
            linestyle="none",
            capsize=3,
            label=method_label(method),
            transform=axes.transData + ScaledTranslation(offset, 0, figure.dpi_scale_trans),
        )
    labelled_points = points.assign(top=points["high_percent"].fillna(points["accuracy_percent"]))
    for model, cells in labelled_points.groupby("model"):
        axes.annotate(
            truncate_name(str(model)),
            (cells[cost].iloc[0], cells["top"].max()),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
        )
    if teacher_percent is not None:
        axes.axhline(teacher_percent, color=MUTED_COLOUR, linestyle="--", linewidth=1)
        axes.annotate(
            f"teacher {teacher_percent:.1f} %",
            (0.01, teacher_percent),
            xycoords=axes.get_yaxis_transform(),
            xytext=(0, 3),
            textcoords="offset points",
            color=MUTED_COLOUR,
        )
    # Lines that are moved aside do not widen the axis by themselves.
    interval_ends = points[["low_percent", "accuracy_percent", "high_percent"]].to_numpy(float)
    interval_ends = np.append(
        interval_ends, np.nan if teacher_percent is None else teacher_percent
    )
    low, high = np.nanmin(interval_ends), np.nanmax(interval_ends)
    margin = 0.15 * max(high - low, 1)
    axes.set_ylim(low - margin, high + margin)
    _format_log_axis(axes)
    axes.set_xlabel(f"{unit} (logarithmic)")
    split = points["split"].iloc[0]
    axis_label = "test accuracy, %" if split == "test" else "search score (validation), %"
    axes.set_ylabel(axis_label)
    _add_legend(figure, axes)
    return figure


@rc_context(RC_PARAMS)
def plot_search_curves(
    curve: pd.DataFrame, leaderboard: pd.DataFrame, expected: pd.DataFrame | None = None
) -> Figure:
    """Best score so far against epochs spent, a panel a model; at the right what it was worth.

    Args:
        curve: as `kdtune.reports.tables.figure_data.search_curve_steps` makes it.
        leaderboard: of the same cells; mean and deviation over seeds are drawn where they are known.
        expected: the whole search curve, where its expected part holds: under random search.
    """
    models = list(dict.fromkeys(curve["model"]))
    figure, panels = _stacked_panels(len(models), 2.5)
    methods = method_styles(curve["method"])
    for axes, model in zip(panels, models, strict=True):
        model_curve = curve[curve["model"] == model]
        last_epoch = model_curve["epochs"].max()
        for i, (method, (colour, marker)) in enumerate(methods.items()):
            cell_curve = model_curve[model_curve["method"] == method]
            axes.step(
                cell_curve["epochs"],
                cell_curve["best_percent"],
                where="post",
                color=colour,
                marker=marker,
                markevery=[len(cell_curve) - 1] if len(cell_curve) else [],
                label=method_label(method),
            )
            if expected is not None:
                expected_rows = expected[
                    (expected["model"] == model) & (expected["method"] == method)
                ]
                mean = expected_rows[["expected_epochs", "expected_best_percent"]].to_numpy().T
                axes.plot(*mean, color=colour, linestyle=":", linewidth=1)
            cell_row = leaderboard[
                (leaderboard["model"] == model) & (leaderboard["method"] == method)
            ]
            axes.errorbar(
                [last_epoch * (1.06 + 0.035 * i)] * len(cell_row),
                cell_row["validation_accuracy_percent"],
                yerr=cell_row["validation_seed_sd_points"].fillna(0),
                color=colour,
                marker=marker,
                markerfacecolor="none",
                linestyle="none",
                capsize=3,
            )
        axes.set_title(truncate_name(model))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("best validation, %")
    panels[-1].set_xlabel("epochs spent by the cell")
    _add_legend(figure, panels[0])
    return figure


@rc_context(RC_PARAMS)
def plot_setting_ranges(ranges: pd.DataFrame) -> Figure:
    """Good values of each setting of one method, by model; the overlap is shaded.

    Args:
        ranges: rows of `kdtune.reports.tables.figure_data.setting_ranges` of one method.
    """
    names = list(dict.fromkeys(ranges["hyperparameter"]))
    models = list(dict.fromkeys(ranges["model"]))
    [(colour, marker)] = method_styles(ranges["method"]).values()
    rows = -(-len(names) // 2)
    figure = ReportFigure(
        figsize=(FIGURE_WIDTH_INCHES, rows * (0.3 * len(models) + 0.75)), layout="constrained"
    )
    axes_grid = figure.subplots(rows, 2, squeeze=False, sharey=True)
    for axes, name in zip(axes_grid.flat, names, strict=False):
        setting_rows = ranges[ranges["hyperparameter"] == name]
        low, high = setting_rows["good_low"].max(), setting_rows["good_high"].min()
        if len(setting_rows) == len(models) > 1 and low <= high:
            axes.axvspan(low, high, color=BAND_COLOUR, linewidth=0)
        for row in setting_rows.itertuples():
            y = models.index(row.model)
            axes.plot([row.good_low, row.good_high], [y, y], color=colour, linewidth=4, alpha=0.5)
            best = pd.to_numeric(row.best, errors="coerce")
            axes.plot(best, y, color=colour, marker=marker, markersize=7)
        if setting_rows["log"].all():
            axes.set_xscale("log")
            _format_log_axis(axes)
        axes.set_title(
            truncate_name(name) + (" (logarithmic)" if setting_rows["log"].all() else "")
        )
        _label_rows(axes, [truncate_name(model) for model in models])
    for axes in axes_grid.flat[len(names) :]:
        axes.set_axis_off()
    return figure


@rc_context(RC_PARAMS)
def plot_outcomes(counts: pd.DataFrame) -> Figure:
    """How the trials of each cell ended.

    Args:
        counts: as `kdtune.reports.tables.figure_data.count_outcomes` makes it.
    """
    figure, axes = _single_panel(0.34 * len(counts) + 1.0)
    y = np.arange(len(counts))
    bar_starts = np.zeros(len(counts))
    for state, colour in STATE_COLOURS.items():
        width = counts[state].to_numpy(float)
        if width.any():
            axes.barh(y, width, left=bar_starts, color=colour, height=0.7, label=state)
        bar_starts = bar_starts + width
    for row_number, row in enumerate(counts.itertuples()):
        labels = [
            f"{getattr(row, state)} {state}" for state in STATE_COLOURS if getattr(row, state)
        ]
        axes.annotate(
            ", ".join(labels),
            (bar_starts[row_number], row_number),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    _label_rows(
        axes,
        [f"{method_label(row.method)}, {truncate_name(row.model)}" for row in counts.itertuples()],
    )
    max_trials = bar_starts.max()
    ticks = MaxNLocator(4, integer=True).tick_values(0, max_trials)
    axes.set_xticks(ticks[ticks <= max_trials])
    axes.set_xlim(0, 2.3 * max_trials)  # room for the words
    axes.set_xlabel("trials")
    _add_legend(figure, axes)
    return figure


def render_svg(figure: Figure, prefix: str) -> str:
    """A figure as an element of a page: own ids, colours as CSS variables, nothing to load.

    Args:
        figure: made here.
        prefix: of all ids, to be different in each figure of a page.
    """
    root = ElementTree.fromstring(render_file(figure, "svg"))
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{prefix}-{value}")
            elif key.endswith("href"):
                element.set(key, f"#{prefix}-{value.removeprefix('#')}")
            else:
                value = value.replace("url(#", f"url(#{prefix}-")
                value = re.sub(r"(\.\d\d)\d+", r"\1", value)  # hundredths of a point will do
                element.set(key, re.sub("#[0-9a-f]{6}", _to_css_variable, value))
    return ElementTree.tostring(root, encoding="unicode")


def _to_css_variable(match: re.Match[str]) -> str:
    return f"var(--{CSS_VARIABLES[match[0]]})" if match[0] in CSS_VARIABLES else match[0]


@rc_context(RC_PARAMS)
def render_file(figure: Figure, file_format: str) -> bytes:
    """A figure as the content of a file, ``svg`` or ``png``, without date and program."""
    metadata: Any = dict.fromkeys(
        ("Date", "Creator", "Format", "Type") if file_format == "svg" else ("Software",)
    )
    out = io.BytesIO()
    with warnings.catch_warnings():  # the page has other fonts, which may have it
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        background: Any = {"transparent": True} if file_format == "svg" else {"facecolor": "white"}
        figure.savefig(out, format=file_format, metadata=metadata, dpi=200, **background)
    return out.getvalue()


def _single_panel(height: float) -> tuple[Figure, Axes]:
    figure, [axes] = _stacked_panels(1, height)
    return figure, axes


def _stacked_panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    figure = ReportFigure(figsize=(FIGURE_WIDTH_INCHES, count * height), layout="constrained")
    return figure, list(figure.subplots(count, 1, squeeze=False).flat)


def _label_rows(axes: Axes, names: list[str]) -> None:
    """Name the rows of a figure, the first one on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _format_log_axis(axes: Axes) -> None:
    """Numbers as people write them, and few of them."""
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
