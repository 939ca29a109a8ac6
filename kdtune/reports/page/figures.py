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

from kdtune.config.sweep import BASELINES
from kdtune.reports.tables.comparison import ALL
from kdtune.reports.tables.sentences import in_points, name_of

INK, SOFT, GRID, BAND = "#1b1b1b", "#6b6b6b", "#d8d8d8", "#e9e9e9"
FURTHER = "#cc79a7"
KNOWN = {
    "at": ("#0072b2", "o"),
    "at_paper": ("#3d4f9f", "h"),
    "fitnets": ("#d55e00", "s"),
    "vid": ("#8c5a00", "P"),
    "sp": ("#a0388f", "v"),
    "rkd": ("#7457c8", "<"),
    "pkt": ("#00838f", ">"),
    "dkd": ("#b3261e", "*"),
    "dist": ("#6f7d00", "X"),
    "kd": ("#009e73", "^"),
    "student": ("#767676", "D"),
}
"""Colour and marker of a method, for eyes of every kind."""

MARKERS = ("v", "P", "X", "*", "<", ">", "p", "h", "d")
"""Of further methods, which share a colour."""

STATES = {
    "finished": "#0072b2",
    "stopped": "#8fbfdc",
    "diverged": "#d55e00",
    "crashed": "#6b6b6b",
    "running": "#e9e9e9",
}

VARIABLES = {
    INK: "ink",
    SOFT: "soft",
    GRID: "grid",
    BAND: "band",
    FURTHER: "further",
    "#8fbfdc": "stopped",
    **{colour: method for method, (colour, _) in KNOWN.items()},
}
"""CSS variables that take the place of colours, so that a page can be dark."""

STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": SOFT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "kdtune",
    "text.color": INK,
    "text.parse_math": False,
    "text.usetex": False,
    "xtick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.color": SOFT,
    "ytick.labelcolor": INK,
}
WIDTH = 7.2
"""Of every figure, in inches."""

ASIDE = 0.13
"""Between methods of one student, in inches."""

LONGEST = 24
"""Letters of a name that are drawn."""

ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


class ReportFigure(Figure):
    """A matplotlib figure that a notebook shows; pyplot, which needs a display, has no part."""

    def _repr_png_(self) -> tuple[bytes, dict[str, float]]:
        return to_file(self, "png"), {"width": 100 * WIDTH}


def styles_of(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method, baselines last.

    >>> styles_of(["at", "mine"])
    {'at': ('#0072b2', 'o'), 'mine': ('#cc79a7', 'v')}
    """
    given = list(dict.fromkeys(methods))
    further = [method for method in given if method not in KNOWN]
    markers = {method: MARKERS[i % len(MARKERS)] for i, method in enumerate(further)}
    looks = {**KNOWN, **{method: (FURTHER, markers[method]) for method in further}}
    return {m: looks[m] for m in sorted(looks, key=BASELINES.__contains__) if m in given}


def cut(name: str) -> str:
    """A name that fits beside an axis.

    >>> cut("a" * 30)
    'aaaaaaaaaaaaaaaaaaaaaaa…'
    """
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def shown(method: str) -> str:
    """A method as figures call it."""
    return cut(name_of(method))


@rc_context(STYLE)
def verdict_figure(pair: pd.DataFrame, seeds: pd.DataFrame) -> Figure:
    """Difference of two methods by model, with its 95 % interval and each seed's.

    Args:
        pair: rows of `kdtune.reports.tables.comparison.first_pair` that have a difference.
        seeds: as `kdtune.reports.tables.figure_data.seed_differences` makes it.
    """
    figure, axes = _one(0.62 * len(pair) + 1.1)
    first = pair.iloc[0]
    a, b = shown(first["method_a"]), shown(first["method_b"])
    least = first["min_difference_points"]
    axes.axvspan(-least, least, color=BAND, linewidth=0)
    axes.axvline(0, color=INK, linewidth=1)
    for y, row in enumerate(pair.itertuples()):
        axes.errorbar(
            row.difference_points,
            y,
            xerr=row.half_width_points,
            color=INK,
            marker="D" if row.model == ALL else "o",
            markersize=7,
            capsize=4,
        )
        own = seeds.loc[seeds["model"] == row.model, "difference_points"]
        axes.scatter(
            own, np.full(len(own), y + 0.27), s=16, facecolors="none", edgecolors=SOFT, linewidth=1
        )
        value, width = row.difference_points, row.half_width_points
        text = f"{in_points(value, width)} ± {in_points(width, width)}"
        axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center")
    _rows(axes, ["all students" if model == ALL else cut(model) for model in pair["model"]])
    axes.set_xlabel(f"{a} minus {b}, points of test accuracy\n← {b} better  |  {a} better →")
    return figure


@rc_context(STYLE)
def ship_figure(points: pd.DataFrame, teacher: float | None = None) -> Figure:
    """Accuracy of each cell against what its student costs.

    Args:
        points: rows of `kdtune.reports.tables.figure_data.ship_points` with a latency, or
            else with MACs.
        teacher: its accuracy in percent, on the same images.
    """
    figure, axes = _one(3.6)
    cost = "latency_ms" if points["latency_ms"].notna().any() else "macs"
    unit = "milliseconds for one image" if cost == "latency_ms" else "multiply-adds for one image"
    methods = styles_of(points["method"])
    front = points[points[f"front_{cost.removesuffix('_ms')}"]].sort_values(cost)
    axes.step(
        front[cost].astype(float),
        front["accuracy_percent"],
        where="post",
        color=SOFT,
        linewidth=1,
        zorder=0,
    )
    axes.set_xscale("log")
    axes.set_xlim(points[cost].min() / 1.6, points[cost].max() * 1.6)
    for i, (method, (colour, marker)) in enumerate(methods.items()):
        own = points[points["method"] == method]
        low, high = own["low_percent"], own["high_percent"]
        values = own["accuracy_percent"]
        # Methods of one student cost the same.
        aside = (i - (len(methods) - 1) / 2) * ASIDE
        axes.errorbar(
            own[cost].astype(float),
            values,
            yerr=[(values - low).fillna(0), (high - values).fillna(0)],
            color=colour,
            marker=marker,
            markersize=7,
            linestyle="none",
            capsize=3,
            label=shown(method),
            transform=axes.transData + ScaledTranslation(aside, 0, figure.dpi_scale_trans),
        )
    tops = points.assign(top=points["high_percent"].fillna(points["accuracy_percent"]))
    for model, own in tops.groupby("model"):
        axes.annotate(
            cut(str(model)),
            (own[cost].iloc[0], own["top"].max()),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
        )
    if teacher is not None:
        axes.axhline(teacher, color=SOFT, linestyle="--", linewidth=1)
        axes.annotate(
            f"teacher {teacher:.1f} %",
            (0.01, teacher),
            xycoords=axes.get_yaxis_transform(),
            xytext=(0, 3),
            textcoords="offset points",
            color=SOFT,
        )
    # Lines that are moved aside do not widen the axis by themselves.
    ends = points[["low_percent", "accuracy_percent", "high_percent"]].to_numpy(float)
    ends = np.append(ends, np.nan if teacher is None else teacher)
    low, high = np.nanmin(ends), np.nanmax(ends)
    room = 0.15 * max(high - low, 1)
    axes.set_ylim(low - room, high + room)
    _plain_log(axes)
    axes.set_xlabel(f"{unit} (logarithmic)")
    split = points["split"].iloc[0]
    words = "test accuracy, %" if split == "test" else "search score (validation), %"
    axes.set_ylabel(words)
    _legend(figure, axes)
    return figure


@rc_context(STYLE)
def search_figure(
    curve: pd.DataFrame, board: pd.DataFrame, expected: pd.DataFrame | None = None
) -> Figure:
    """Best score so far against epochs spent, a panel a model; at the right what it was worth.

    Args:
        curve: as `kdtune.reports.tables.figure_data.curve_points` makes it.
        board: of the same cells; mean and deviation over seeds are drawn where they are known.
        expected: the whole search curve, where its expected part holds: under random search.
    """
    models = list(dict.fromkeys(curve["model"]))
    figure, panels = _panels(len(models), 2.5)
    methods = styles_of(curve["method"])
    for axes, model in zip(panels, models, strict=True):
        own = curve[curve["model"] == model]
        end = own["epochs"].max()
        for i, (method, (colour, marker)) in enumerate(methods.items()):
            line = own[own["method"] == method]
            axes.step(
                line["epochs"],
                line["best_percent"],
                where="post",
                color=colour,
                marker=marker,
                markevery=[len(line) - 1] if len(line) else [],
                label=shown(method),
            )
            if expected is not None:
                of_cell = expected[(expected["model"] == model) & (expected["method"] == method)]
                mean = of_cell[["expected_epochs", "expected_best_percent"]].to_numpy().T
                axes.plot(*mean, color=colour, linestyle=":", linewidth=1)
            cell = board[(board["model"] == model) & (board["method"] == method)]
            axes.errorbar(
                [end * (1.06 + 0.035 * i)] * len(cell),
                cell["validation_accuracy_percent"],
                yerr=cell["validation_seed_sd_points"].fillna(0),
                color=colour,
                marker=marker,
                markerfacecolor="none",
                linestyle="none",
                capsize=3,
            )
        axes.set_title(cut(model))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("best validation, %")
    panels[-1].set_xlabel("epochs spent by the cell")
    _legend(figure, panels[0])
    return figure


@rc_context(STYLE)
def settings_figure(ranges: pd.DataFrame) -> Figure:
    """Good values of each setting of one method, by model; the overlap is shaded.

    Args:
        ranges: rows of `kdtune.reports.tables.figure_data.range_points` of one method.
    """
    names = list(dict.fromkeys(ranges["hyperparameter"]))
    models = list(dict.fromkeys(ranges["model"]))
    [(colour, marker)] = styles_of(ranges["method"]).values()
    rows = -(-len(names) // 2)
    figure = ReportFigure(figsize=(WIDTH, rows * (0.3 * len(models) + 0.75)), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False, sharey=True)
    for axes, name in zip(grid.flat, names, strict=False):
        own = ranges[ranges["hyperparameter"] == name]
        low, high = own["good_low"].max(), own["good_high"].min()
        if len(own) == len(models) > 1 and low <= high:
            axes.axvspan(low, high, color=BAND, linewidth=0)
        for row in own.itertuples():
            y = models.index(row.model)
            axes.plot([row.good_low, row.good_high], [y, y], color=colour, linewidth=4, alpha=0.5)
            best = pd.to_numeric(row.best, errors="coerce")
            axes.plot(best, y, color=colour, marker=marker, markersize=7)
        if own["log"].all():
            axes.set_xscale("log")
            _plain_log(axes)
        axes.set_title(cut(name) + (" (logarithmic)" if own["log"].all() else ""))
        _rows(axes, [cut(model) for model in models])
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    return figure


@rc_context(STYLE)
def outcomes_figure(counts: pd.DataFrame) -> Figure:
    """How the trials of each cell ended.

    Args:
        counts: as `kdtune.reports.tables.figure_data.outcomes` makes it.
    """
    figure, axes = _one(0.34 * len(counts) + 1.0)
    y = np.arange(len(counts))
    begin = np.zeros(len(counts))
    for state, colour in STATES.items():
        width = counts[state].to_numpy(float)
        if width.any():
            axes.barh(y, width, left=begin, color=colour, height=0.7, label=state)
        begin = begin + width
    for place, row in enumerate(counts.itertuples()):
        said = [f"{getattr(row, state)} {state}" for state in STATES if getattr(row, state)]
        axes.annotate(
            ", ".join(said),
            (begin[place], place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    _rows(axes, [f"{shown(row.method)}, {cut(row.model)}" for row in counts.itertuples()])
    most = begin.max()
    ticks = MaxNLocator(4, integer=True).tick_values(0, most)
    axes.set_xticks(ticks[ticks <= most])
    axes.set_xlim(0, 2.3 * most)  # room for the words
    axes.set_xlabel("trials")
    _legend(figure, axes)
    return figure


def to_svg(figure: Figure, prefix: str) -> str:
    """A figure as an element of a page: own ids, colours as CSS variables, nothing to load.

    Args:
        figure: made here.
        prefix: of all ids, to be different in each figure of a page.
    """
    root = ElementTree.fromstring(to_file(figure, "svg"))
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{prefix}-{value}")
            elif key.endswith("href"):
                element.set(key, f"#{prefix}-{value.removeprefix('#')}")
            else:
                value = value.replace("url(#", f"url(#{prefix}-")
                value = re.sub(r"(\.\d\d)\d+", r"\1", value)  # hundredths of a point will do
                element.set(key, re.sub("#[0-9a-f]{6}", _variable, value))
    return ElementTree.tostring(root, encoding="unicode")


def _variable(found: re.Match[str]) -> str:
    return f"var(--{VARIABLES[found[0]]})" if found[0] in VARIABLES else found[0]


@rc_context(STYLE)
def to_file(figure: Figure, form: str) -> bytes:
    """A figure as the content of a file, ``svg`` or ``png``, without date and program."""
    metadata: Any = dict.fromkeys(
        ("Date", "Creator", "Format", "Type") if form == "svg" else ("Software",)
    )
    out = io.BytesIO()
    with warnings.catch_warnings():  # the page has other fonts, which may have it
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        face: Any = {"transparent": True} if form == "svg" else {"facecolor": "white"}
        figure.savefig(out, format=form, metadata=metadata, dpi=200, **face)
    return out.getvalue()


def _one(height: float) -> tuple[Figure, Axes]:
    figure, [axes] = _panels(1, height)
    return figure, axes


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    figure = ReportFigure(figsize=(WIDTH, count * height), layout="constrained")
    return figure, list(figure.subplots(count, 1, squeeze=False).flat)


def _rows(axes: Axes, names: list[str]) -> None:
    """Name the rows of a figure, the first one on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _plain_log(axes: Axes) -> None:
    """Numbers as people write them, and few of them."""
    low, high = axes.get_xlim()
    if high / low < 5:
        axes.xaxis.set_major_locator(MaxNLocator(3))
    else:
        subs = (1, 2, 5) if high / low < 50 else (1, 3) if high / low < 1000 else (1,)
        axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=5, handlelength=1.6)
