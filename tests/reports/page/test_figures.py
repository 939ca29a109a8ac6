"""Figures: their tables by hand, and SVG that a page can hold."""

import io
import re
from functools import cache
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from PIL import Image
from report_sweeps import Sweep, four_cells, half_confirmed

from kdtune.config.methods import BUILTIN_METHODS
from kdtune.reports.page import figures
from kdtune.reports.page.figures import method_styles
from kdtune.reports.page.rendering import CSS_VARIABLES, METHOD_STYLES, render_file, render_svg
from kdtune.reports.tables.comparison import CellResult, select_main_pair
from kdtune.reports.tables.failures import diverged_settings, failures_table
from kdtune.reports.tables.figure_data import (
    accuracy_vs_cost,
    count_outcomes,
    search_curve_steps,
    seed_differences,
    setting_ranges,
    settings_summary,
)

HOSTILE = '<script>alert("1")</script> & a|b $x_1$ ü漢'
LOG, LINEAR = FloatDistribution(1e-3, 1, log=True), FloatDistribution(0, 1)

CURVE = pd.DataFrame(
    {
        "method": "at", "model": "A", "epochs": [2, 4, 6, 8],
        "best_percent": [np.nan, 50.0, 50.0, 60.0],
        "expected_best_percent": [40.0, 50, 55, 60], "expected_epochs": [2.0, 4, 6, 8],
    }
)  # fmt: skip
SETTINGS = pd.DataFrame(
    [
        ("at", "A", "lr", 0.6, 0.01, 0.2, 0.1),
        ("at", "B", "lr", 0.8, 0.05, 0.4, 0.3),
        ("at", "A", "alpha", np.nan, 0.1, 0.2, 0.15),
        ("at", "B", "alpha", np.nan, 0.3, 0.4, 0.35),
        ("at", "A", "mode", 0.1, np.nan, np.nan, "x"),
        ("at", "B", "mode", 0.2, np.nan, np.nan, "y"),
    ],
    columns=["method", "model", "hyperparameter", "importance", "good_low", "good_high", "best"],
)
SPACES = {"at": {"lr": LOG, "alpha": LINEAR, "mode": CategoricalDistribution(["x", "y"])}}


def pair_of(tables):
    return (
        select_main_pair(tables.comparison)
        .dropna(subset="difference_points")
        .reset_index(drop=True)
    )


def test_the_verdicts_rows_are_those_of_the_first_pair():
    tables = four_cells().tables
    pair = select_main_pair(tables.comparison)
    assert pair["model"].tolist() == ["all", "A", "B"]
    assert {*zip(pair["method_a"], pair["method_b"], strict=True)} == {("at", "fitnets")}
    assert select_main_pair(Sweep().tables.comparison).empty


def test_differences_by_seed():
    def cell(*shares):
        return CellResult({s: np.arange(10) < 10 * x for s, x in enumerate(shares)}, 3, 0, 0.0)

    cells = {
        ("at", "A"): cell(0.5, 0.7, 0.9), ("kd", "A"): cell(0.4, 0.4),
        ("at", "B"): cell(0.3), ("kd", "B"): cell(0.5),
    }  # fmt: skip
    pair = pd.DataFrame({"method_a": "at", "method_b": "kd", "model": ["all", "A", "B"]})
    found = seed_differences(pair, cells)
    assert found["model"].tolist() == ["all", "A", "A", "B"]
    assert found["seed"].tolist() == [0, 0, 1, 0]
    assert found["difference_points"].tolist() == pytest.approx([-5, 10, 30, -20])


def test_what_is_drawn_is_tested_or_says_that_it_is_not():
    ship = four_cells().tables.ship.assign(latency_ms=1.0)
    points = accuracy_vs_cost(ship, "latency_ms")
    assert points["split"].unique() == ["test"] and len(points) == 6
    assert points["accuracy_percent"].tolist() == ship["test_accuracy_percent"].tolist()
    half = accuracy_vs_cost(half_confirmed().tables.ship.assign(macs=7), "macs")
    assert set(half["method"]) == {"at", "fitnets", "student"}  # kd has search scores only
    searched = Sweep().search("at", "A", 0.7).tables.ship
    [point] = accuracy_vs_cost(searched.assign(macs=7), "macs").itertuples()
    assert (point.split, point.accuracy_percent) == ("validation", 70.0)
    assert accuracy_vs_cost(searched, "macs").empty  # its costs are not known


def test_a_student_is_on_the_front_of_a_cost_if_none_is_as_good_for_less():
    ship = four_cells().tables.ship.assign(
        test_accuracy_percent=[70, 60, 70, 80, 80, 75],
        parameters=[10, 10, 9, 20, 20, 20],
        macs=[5, 5, 6, 4, 4, 4],
        latency_ms=[1.0, 1, np.nan, 2, 2, 0.5],
    )
    no, yes = False, True
    for cost, front in (
        ("parameters", [no, no, yes, yes, yes, no]),
        ("macs", [no, no, no, yes, yes, no]),  # the fourth is better for less than the others
        ("latency_ms", [no, no, yes, yes, yes]),  # what was not measured is left out
    ):
        assert accuracy_vs_cost(ship, cost)["pareto"].tolist() == front


def test_a_curve_keeps_its_steps_and_its_end():
    flat = CURVE.assign(best_percent=[np.nan, 50.0, 50.0, 50.0])
    assert search_curve_steps(CURVE)["epochs"].tolist() == [4, 8]
    assert search_curve_steps(flat)["epochs"].tolist() == [4, 8]


def test_ranges_and_their_summary():
    points = setting_ranges(SETTINGS, SPACES)
    assert points["hyperparameter"].tolist() == ["lr", "lr", "alpha", "alpha"]
    assert points["log"].tolist() == [True, True, False, False]
    summary = settings_summary(SETTINGS).set_index("hyperparameter")
    assert summary.loc["lr"].tolist() == ["at", pytest.approx(0.7), 0.6, 0.8, 0.05, 0.2]
    assert summary.loc["alpha", ["importance", "low"]].isna().all()


def failed_sweep():
    scores = [0.5, 0.6, "diverged", "diverged", "crashed", 0.7]
    return Sweep().search("at", "A", *scores).search("kd", "A", 0.5)


def test_failures():
    tables = failed_sweep().tables
    counts = count_outcomes(tables.leaderboard).set_index("method")
    assert counts.loc["at"].tolist() == ["A", 3, 0, 2, 1, 0]
    trials = tables.trials.assign(reason=["x"] * 2 + ["at step 12", "at step 7", "oom", "", ""])
    assert failures_table(trials, tables.runs).values.tolist() == [
        ["diverged", "at step 12", 2, 0],
        ["crashed", "oom", 1, 0],
    ]
    [row] = diverged_settings(trials, SPACES).itertuples()
    assert (row.method, row.hyperparameter) == ("at", "lr")
    assert row.diverged_median == pytest.approx(0.35)  # of 0.3 and 0.4
    assert row.other_median == pytest.approx(0.2)  # of 0.1, 0.2 and 0.6
    assert diverged_settings(tables.trials.iloc[:2], SPACES).empty


@cache
def drawn(name=None):
    """Every figure; of cells that are called so."""
    tables = four_cells().tables
    board = tables.leaderboard.assign(latency_ms=[1.0, 1, 1, 2, 2, 2], macs=7)
    pair, counts = pair_of(tables), count_outcomes(board)
    seeds = seed_differences(pair, tables.cell_results)
    curve, ranges = search_curve_steps(CURVE), setting_ranges(SETTINGS, SPACES)
    points = accuracy_vs_cost(tables.ship.assign(latency_ms=[1.0, 1, 1, 2, 2, 2]), "latency_ms")
    if name:
        called = {"method": name, "model": name}
        pair, seeds = pair.assign(method_a=name, model=name), seeds.assign(model=name)
        points, curve, counts = (t.assign(**called) for t in (points, curve, counts))
        ranges = ranges.assign(**called, hyperparameter=name)
    return {
        "verdict": figures.plot_verdict(pair, seeds),
        "ship": figures.plot_accuracy_vs_cost(points, "latency_ms", 91.0),
        "macs": figures.plot_accuracy_vs_cost(points.assign(macs=7), "macs"),
        "search": figures.plot_search_curves(curve, board, CURVE),
        "settings": figures.plot_setting_ranges(ranges),
        "outcomes": figures.plot_outcomes(counts),
    }


def test_svg_is_ready_for_a_page():
    for name, figure in drawn().items():
        svg = render_svg(figure, name)
        root = ElementTree.fromstring(svg)
        ids = [element.get("id") for element in root.iter() if element.get("id")]
        assert ids and all(one.startswith(f"{name}-") for one in ids)
        assert len(ids) == len(set(ids))
        used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg)
        assert {a or b for a, b in used} <= set(ids)
        assert not re.search("#[0-9a-fA-F]{6}", svg), "every colour follows the page's"
        assert set(re.findall(r"var\(--(\w+)\)", svg)) <= set(CSS_VARIABLES.values())
        assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", svg)
        assert "<metadata" not in svg and "<text" in svg


def texts(svg):
    return [
        "".join(e.itertext()) for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text")
    ]


RANGES = [(1.1, 1.9), (0.02, 0.3), (15, 700), (2e-5, 0.9), (100 - 1e-13, 100)]


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_a_logarithmic_axis_has_a_few_numbers(low, high):
    ranges = setting_ranges(
        SETTINGS.head(1).assign(good_low=low, good_high=high, best=high), SPACES
    )
    axes = figures.plot_setting_ranges(ranges).axes[0]
    (left, right), ticks = axes.get_xlim(), axes.get_xticks()
    assert 2 <= sum((left <= ticks) & (ticks <= right)) <= 8


def test_a_figure_says_the_numbers_of_its_table():
    tables = four_cells().tables
    said = texts(render_svg(drawn()["verdict"], "v"))
    for row in pair_of(tables).itertuples():
        digits = 2 if row.half_width_points < 1 else 1
        width = f"{row.half_width_points:.{digits}f}"
        assert f"{row.difference_points:z.{digits}f} ± {width}" in said
    assert "all students" in said and "AT minus FitNets, points of test accuracy" in said
    assert "3 finished, 2 diverged, 1 crashed" in texts(
        render_svg(figures.plot_outcomes(count_outcomes(failed_sweep().tables.leaderboard)), "o")
    )
    assert {"teacher 91.0 %", "test accuracy, %"} < set(texts(render_svg(drawn()["ship"], "s")))


def test_everything_lies_inside_the_axes():
    for teacher in (91.0, None):
        points = accuracy_vs_cost(four_cells().tables.ship.assign(macs=7), "macs")
        [axes] = figures.plot_accuracy_vs_cost(points, "macs", teacher).axes
        low, high = axes.get_ylim()
        assert low < points["low_percent"].min() and points["high_percent"].max() < high
        assert low < (teacher or 90) < high and axes.get_xlim()[0] < 7 < axes.get_xlim()[1]
        assert len(axes.containers) == 6 + 3  # and those in the legend
    alone = Sweep().search("at", "A", 0.7).tables.ship.assign(macs=7)
    [axes] = figures.plot_accuracy_vs_cost(accuracy_vs_cost(alone, "macs"), "macs").axes
    assert axes.get_ylim()[0] < 70 < axes.get_ylim()[1]


def test_the_ship_set_is_filled_and_the_best_has_a_ring():
    memberships = ["best", "yes", "no", "no", None, "unknown"]
    accuracies = [80.0, 79, 78, 77, 76, 75]
    ship = four_cells().tables.ship.assign(
        macs=7, in_ship_set=memberships, test_accuracy_percent=accuracies,
        test_low_percent=np.nan, test_high_percent=np.nan,
    )  # fmt: skip
    figure = figures.plot_accuracy_vs_cost(accuracy_vs_cost(ship, "macs"), "macs")
    [axes], [legend] = figure.axes, figure.legends
    lines = [bars[0] for bars in axes.containers if len(bars[0].get_ydata())]
    marks = {float(line.get_ydata()[0]): line for line in lines}
    is_filled = [marks[y].get_markerfacecolor() != "none" for y in accuracies]
    assert is_filled == [True, True, False, False, False, True]
    [ring] = [line for line in axes.lines if line.get_markersize() == 14]
    assert ring.get_ydata()[0] == 80
    assert [text.get_text() for text in legend.texts] == ["AT", "FitNets", "student"]


def test_names_are_drawn_as_they_are():
    for name, figure in drawn(HOSTILE[:20] + "ü漢").items():
        svg = render_svg(figure, name)
        assert "<script" not in svg and HOSTILE[:20] in "\n".join(texts(svg))
    assert figures.truncate_name(HOSTILE) == HOSTILE[:23] + "…"


def test_the_same_figure_is_the_same_bytes():
    counts = count_outcomes(failed_sweep().tables.leaderboard)
    one, two = (render_svg(figures.plot_outcomes(counts), "o") for _ in range(2))
    assert one == two


def test_a_figure_is_a_picture_too():
    image = Image.open(io.BytesIO(render_file(drawn()["search"], "png")))
    assert image.width == 1440 and len(image.convert("RGB").getcolors(100_000)) > 20


def test_every_method_has_a_look_of_its_own():
    looks = method_styles([*METHOD_STYLES, *(f"mine{i}" for i in range(9))])
    assert len(set(looks.values())) == 20 and list(looks)[-2:] == ["kd", "student"]
    assert [method_styles(METHOD_STYLES)[method] for method in METHOD_STYLES] == list(
        METHOD_STYLES.values()
    )


def test_known_methods_differ_in_colour_marker_and_name():
    assert len({colour for colour, _ in METHOD_STYLES.values()}) == len(METHOD_STYLES)
    assert len({marker for _, marker in METHOD_STYLES.values()}) == len(METHOD_STYLES)
    assert len({figures.method_label(method) for method in METHOD_STYLES}) == len(METHOD_STYLES)


def test_colours_stand_out_on_light_and_dark_pages():
    """A contrast of 3 : 1, as WCAG 2.1 asks of graphics."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    def contrast(one, two):
        low, high = sorted(map(luminance, (one, two)))
        return (high + 0.05) / (low + 0.05)

    for info in BUILTIN_METHODS.values():
        assert contrast(info.colour, "#ffffff") >= 3
        assert contrast(info.dark_colour, "#121212") >= 3
