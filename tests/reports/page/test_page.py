"""The page at every awkward moment of a sweep, and that it says what the tables say."""

import base64
import io
import json
import re
import shutil
import subprocess
import time

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from report_pages import HOSTILE, STATES, Page, render_report, sweep_of
from report_sweeps import Sweep, ended, epoch, four_cells, one_model, proposed
from sweep_folders import write_sweep_folder

from kdtune.cli.commands import cli
from kdtune.errors import UserError
from kdtune.log import folder as results
from kdtune.log.events import TrialProposed
from kdtune.methods import METHODS
from kdtune.reports.page.page import write_report
from kdtune.reports.page.sections import SECTIONS
from kdtune.reports.tables.notes import verdict_sentences

ANCHORS = ["ship", "verdict", "leaderboard", *SECTIONS]
POLICY = (
    "content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    'img-src data: blob:"'
)


def page_of(path, sweep, **how):
    return Page(render_report([write_sweep_folder(path, sweep, **how).path]))


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """A sweep of four cells, and its page."""
    sweep = four_cells()
    return sweep, page_of(tmp_path_factory.mktemp("four") / "s", sweep)


@pytest.mark.parametrize("state", STATES)
def test_every_state_of_a_sweep_has_a_page(tmp_path, state):
    make, sentence = STATES[state]
    images = {"test_images": 0} if state == "no test images" else {}
    page = page_of(tmp_path / "s", make(), **images)
    assert sentence in page.said
    assert set(ANCHORS) <= set(page.ids) and len(page.ids) == len(set(page.ids))
    assert re.findall(r"<h2>(\d)\. ", page.text) == list("12345678")
    assert re.findall("<details( open)?>\n<summary><h2>", page.text) == [" open"] * 3 + [""] * 5
    assert not [link for link in page.links if not link.startswith(("#", "data:text/csv"))]
    assert all(link[1:] in page.ids for link in page.links if link[0] == "#")
    assert not re.search(r"url\((?!#)|@import|https?:(?!//www\.w3\.org/\d+/)", page.text)
    assert POLICY in page.text  # which forbids all that is loaded
    assert len(page.text) < 1_000_000
    assert "nan" not in re.findall(r"[\w.]+", page.said.lower()) and "<NA>" not in page.text


def test_strengths_are_shown_as_weights_of_each_cell(four, tmp_path):
    assert "Strengths." not in four[1].said
    sweep = one_model()
    sweep.events = [
        event.model_copy(update={"loss_scales": {"beta": 0.004}, "config": {"beta": 250.0}})
        if isinstance(event, TrialProposed) and event.method == "at"
        else event
        for event in sweep.events
    ]
    said = page_of(tmp_path / "strengths", sweep).said
    assert "A strength is weight times scale" in said and "beta 0.004 250" in said


def test_the_numbers_are_those_of_the_tables(four):
    sweep, page = four
    board = sweep.tables.leaderboard
    rows = page.table("rank", "test %")
    assert [(r["model"], r["method"].lower()) for r in rows] == [
        *board[["model", "method"]].itertuples(index=False, name=None)
    ]
    for row, cell in zip(rows, board.itertuples(), strict=True):
        width = f"{cell.test_half_width_points:.2f}"
        assert row["test %"] == f"{cell.test_accuracy_percent:.2f} ± {width}"
        assert (row["rank"], row["seeds"]) == (str(cell.rank), str(cell.seeds_finished))
    pairs = page.table("pair", "difference, points")
    for row, found in zip(pairs, sweep.tables.comparison.itertuples(), strict=True):
        width = f"{found.half_width_points:.2f}"
        assert row["difference, points"] == f"{found.difference_points:+.2f} ± {width}"
    said = [row["in words"] for row in page.table("in words")]
    assert said == verdict_sentences(sweep.tables.comparison)
    assert sweep.tables.comparison.sentence[2] in page.said.split("3. Leaderboard")[1]
    searched = page.table("search luck, points")
    assert [float(row["search luck, points"]) for row in searched] == pytest.approx(
        board["search_luck_points"].tolist(), abs=0.005
    )


def test_the_verdict_is_four_sentences(four):
    sweep, page = four
    text = page.text.replace("\u00a0", " ")
    text = text.split('id="verdict"')[1].split("<figure")[0]
    said = re.findall(r'<p class="(lead|text)">(.*?)</p>', text)
    assert said[0] == ("lead", sweep.tables.comparison.sentence[2])
    assert said[1][1] == "By student: AT better on A; undecided on B."
    assert said[2][1].startswith("Gain over student on average over 2 students: ")
    assert said[3][1] == (
        "3 shared seeds (look 1 of 4), 400 test images, 0 of 12 trials failed, 0 of 18 "
        "confirmation runs failed."
    )


def test_of_many_pairs_it_is_said_how_many_luck_decides(four, tmp_path):
    sweep = Sweep()
    for method in (*list(METHODS)[:4], "kd", "student"):
        sweep.search(method, "A", 0.7).confirm(method, "A", 0, [0.7] * 3)
    said = page_of(tmp_path / "s", sweep).said
    assert "not the 15 pairs: if no method differed, about 0.75 of them would still" in said
    assert "pairs: if no method" not in four[1].said


def test_a_sweep_that_runs_says_so_and_one_that_does_not_how_to_go_on(tmp_path):
    folder = write_sweep_folder(tmp_path / "s", Sweep(), complete=False)
    with folder.locked():
        assert "state running" in Page(render_report([folder.path])).said.replace(
            "state", "state "
        )
    said = Page(render_report([folder.path])).said
    assert f"interrupted; to continue: kdtune resume {folder.path}" in said


def test_a_search_has_no_rank_or_interval_and_without_a_scheduler_no_rungs(tmp_path):
    path = tmp_path / "s"
    page = page_of(path, sweep_of([0.5, 0.6]), scheduler="none")
    [row, _] = page.table("best validation %")
    assert row["best validation %"] == "60.00" and "rank" not in row
    assert "± " not in page.said.split("3. Leaderboard")[1].split("8. How to read")[0]
    assert f"run kdtune confirm {path}" in page.said
    assert f"kdtune dashboard {path} tensorboard --logdir {path}/tensorboard" in page.said
    assert "No trial was stopped early: the sweep had --scheduler none." in page.said


def test_what_was_fixed_was_not_searched(tmp_path):
    folder = write_sweep_folder(tmp_path / "s", sweep_of([0.5]))
    lines = [json.loads(line) for line in folder.log_path.read_text().splitlines()]
    for event in lines:
        event |= {"distributions": {}} if "distributions" in event else {}
        event |= {"spaces": {}} if "spaces" in event else {}
    folder.log_path.write_text("".join(json.dumps(event) + "\n" for event in lines))
    page = Page(render_report([folder.path]))
    assert "No settings to compare: nothing was searched." in page.said
    rows = page.table("search luck, points")
    assert {row["search luck, points"] for row in rows} == {"not searched"}


def test_hostile_text_is_shown_as_it_is(tmp_path):
    sweep = sweep_of([0.5] * 5 + ["crashed"])
    sweep.events[-1] = sweep.events[-1].model_copy(update={"reason": HOSTILE})
    for event in sweep.events:
        if isinstance(event, TrialProposed):
            event.config["note"] = HOSTILE
            event.params[HOSTILE] = HOSTILE
    path = tmp_path / "<b>x&y"
    page = page_of(path, sweep, classes=[HOSTILE, "b"])
    assert "<script>alert" not in page.text and "<b>x" not in page.text
    assert "\x1b" not in page.text.replace(r"\x1b", "")
    shown = HOSTILE.replace("\x1b", r"\x1b")
    assert page.table("trials", "confirming runs")[-1]["in words"] == shown
    assert f"2: {shown}, b" in page.said and "<b>x&y" in page.said


def test_the_carried_tables_are_those_of_the_folder(four):
    sweep, page = four
    links = [link for link in page.links if link.startswith("data:")]
    assert re.findall(r'download="(\w+)\.csv"', page.text) == [
        "leaderboard", "comparison", "ship", "search_curve", "rungs", "settings",
    ]  # fmt: skip
    back = pd.read_csv(io.BytesIO(base64.b64decode(links[1].partition(",")[2])))
    exact = sweep.tables.comparison["difference_points"].tolist()
    assert back["difference_points"].tolist() == pytest.approx(exact, rel=1e-15)


def test_tables_that_find_no_room_are_named(tmp_path, monkeypatch):
    folder = write_sweep_folder(tmp_path / "s", four_cells())
    size = len(render_report([folder.path]))
    monkeypatch.setattr("kdtune.reports.page.page.MAX_PAGE_BYTES", size - 1000)
    text = render_report([folder.path])
    assert re.search(r"Too large for this page, and in the sweep's folder: [\w., ]+\.csv\.", text)
    assert len(text) < size - 1000 + 200 and "data:text/csv" in text


def test_comparable_sweeps_stand_in_one_table_and_others_apart(tmp_path):
    paths = [write_sweep_folder(tmp_path / name, four_cells()).path for name in ("one", "two")]
    paths.append(write_sweep_folder(tmp_path / "three", one_model(), epochs=9).path)
    page = Page(render_report(paths))
    boards = [t for t in page.tables if {"test %", "rank"} <= {*t[0]}]
    assert [len(board) - 1 for board in boards] == [12, 3]
    assert [{row[0] for row in board[1:]} for board in boards] == [
        {str(paths[0]), str(paths[1])}, {str(paths[2])},
    ]  # fmt: skip
    one, two, three = map(str, paths)
    assert f"{one}, {two} and {three} are kept apart: they differ in epochs." in page.said
    assert page.text.count("<figure") == 9 and len(page.ids) == len(set(page.ids))
    assert 'download="two-leaderboard.csv"' in page.text


def large(path):
    """800 trials in 8 cells, of 1 to 9 epochs."""
    sweep, random = Sweep(), np.random.default_rng(0)
    for method in ("at", "fitnets", "kd", "student"):
        for model in ("A", "B"):
            for number in range(100):
                trial, scores = f"{method}-{model}-{number:03d}", random.random(9).cumsum() / 9
                last = int(random.integers(1, 10))
                lr = float(10 ** random.uniform(-3, 0))
                sweep.events.append(proposed(trial, number, lr=lr))
                sweep.events += [epoch(trial, n + 1, scores[n]) for n in range(last)]
                state = "diverged" if lr > 0.8 else "finished" if last == 9 else "stopped"
                sweep.events.append(ended(trial, state))
    return write_sweep_folder(path, sweep, epochs=9)


def test_many_trials_take_seconds_and_less_than_a_megabyte(tmp_path):
    folder = large(tmp_path / "s")
    begun = time.process_time()
    text = render_report([folder.path])
    assert time.process_time() - begun < 8
    assert len(text.encode()) < 1_000_000 and text.count("<figure") == 6


def test_a_log_is_read_once(tmp_path, monkeypatch):
    folder, read = write_sweep_folder(tmp_path / "s", four_cells()), []
    whole = results.parse_events

    def counted(content, path, *before):
        read.append(path)
        return whole(content, path, *before)

    monkeypatch.setattr(results, "parse_events", counted)
    render_report([folder.path])
    assert read == [folder.log_path, folder.confirm_log_path]


def test_the_command_writes_page_and_figures(tmp_path):
    path = write_sweep_folder(tmp_path / "s", four_cells()).path
    done = CliRunner().invoke(cli, ["report", str(path), "--figures", str(tmp_path / "f")])
    assert done.stdout == f"{path / 'report.html'}\n"
    assert done.stderr.endswith(f"wrote the figures to {tmp_path / 'f'}\n")
    assert (path / "report.html").read_text().startswith("<!doctype html>")
    names = {"verdict", "search", "failures"}
    assert {p.name for p in (tmp_path / "f").iterdir()} == {
        f"{name}.{form}" for name in names for form in ("svg", "png")
    }
    again = tmp_path / "new" / "other.html"
    assert write_report([path], again, None) == again and again.exists()
    with pytest.raises(UserError, match="There is no folder"):
        write_report([tmp_path / "no"], None, None)


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PROBE = """<script>
all("details").forEach(fold => fold.open = true);
const head = all("th").find(one => one.textContent === "trials");
head.click();
const drawn = all("figure svg").filter(one => one.getBoundingClientRect().height > 60);
const saved = [];
HTMLAnchorElement.prototype.click = function () {
  saved.push(this.download, this.href.slice(0, 14), this.href.length > 10_000);
  document.body.dataset.saved = saved;
};
all("button").slice(0, 2).forEach(button => button.click());
const wide = document.documentElement.scrollWidth - innerWidth > 0;
document.body.dataset.probe = [drawn.length, all("figure button").length, head.ariaSort, wide];
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_draws_every_figure_and_complains_of_nothing(tmp_path):
    sweep = four_cells()
    for method in ("at", "fitnets"):
        sweep.search(method, "C", *np.linspace(0.4, 0.6, 6))
    text = render_report([write_sweep_folder(tmp_path / "s", sweep).path])
    (tmp_path / "page.html").write_text(text.replace("</body>", f"{PROBE}</body>"))
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr", "--window-size=500,900", "--dump-dom",
            "--virtual-time-budget=3000",
            (tmp_path / "page.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    count = text.count("<figure")
    [probed] = re.findall('data-probe="([^"]*)"', done.stdout)
    [saved] = re.findall('data-saved="([^"]*)"', done.stdout)
    assert re.fullmatch("verdict.svg,blob:[^,]*,false,verdict.png,data:image/png,true", saved)
    assert probed == f"{count},{2 * count},descending,false" and count == 5


def test_repeats_and_seed_noise_are_in_the_section_of_the_search(four, tmp_path):
    sweep = Sweep().search("at", "A", 0.80, 0.70).search("kd", "A", 0.6).repeat("at", "A", 0, 0.70)
    page = page_of(tmp_path / "s", sweep, sampler="random")
    rows = page.table("search luck, points")
    assert [(r["trials"], r["repeats"], r["seed noise, points"]) for r in rows] == [
        ("3", "1", "7.07"), ("1", "0", ""),
    ]  # fmt: skip
    assert "Repeats: trials with the settings of an earlier one" in page.said
    page = four[1]
    assert "repeats" not in page.table("search luck, points")[0] and "Repeats:" not in page.said


def test_the_search_says_how_near_it_has_come_to_the_best(tmp_path):
    few = Sweep().search("at", "A", *6 * [0.8]).search("kd", "A", *5 * [0.7])
    few.model("at", "A", changes={"left_to_gain": 0.1}, t0=0.8)
    needed = "is unknown: that takes 6 finished trials a cell, and one has 5."
    assert needed in page_of(tmp_path / "few", few).said
    sweep = Sweep().search("at", "A", *6 * [0.8]).search("kd", "A", *6 * [0.7])
    assert "the best of their spaces is unknown" in page_of(tmp_path / "none", sweep).said
    for method, gain in (("at", 0.035), ("kd", 0.002)):
        sweep.model(method, "A", changes={"left_to_gain": gain}, t0=0.8)
    page = page_of(tmp_path / "s", sweep)
    assert "each search has come within 0.20 to 3.50 points of the best of its space" in page.said
    rows = page.table("left to gain, points")
    assert [row["left to gain, points"] for row in rows] == ["3.50", "0.20"]
