"""Printed tables, the notes below them, and the formats for other programs."""

import io
import json

import pandas as pd
import pytest
from report_sweeps import (
    CONDITIONS,
    EVENTS,
    PROFILE,
    Sweep,
    diverged_seed,
    ended,
    epoch,
    four_cells,
    half_confirmed,
    one_method,
    one_model,
    proposed,
)

from kdtune.reports.tables.columns import LEADERBOARD
from kdtune.reports.tables.leaderboard import build_sweep_tables
from kdtune.reports.tables.notes import (
    INTERVAL_NOTE,
    SEARCH_CAVEAT,
    answer_sentences,
    better_on_test_note,
    result_notes,
)
from kdtune.reports.tables.several_sweeps import join_leaderboards
from kdtune.reports.text.render import render_leaderboards, render_table, to_csv


def boards_of(tables):
    return join_leaderboards({"s": tables}, {"s": CONDITIONS})


def shown(tables, form="table"):
    notes = result_notes(tables)
    return render_leaderboards(boards_of(tables), form, notes, answer_sentences(tables, "s"))


def row_of(text, *begin):
    """The cells of the Markdown row that begins with these."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    [found] = [row for row in rows if row[: len(begin)] == list(begin)]
    return found


def test_a_search_is_no_result():
    text = shown(build_sweep_tables(EVENTS), "markdown")
    lines = text.splitlines()
    assert row_of(text, "model") == [
        "model", "method", "best validation %", "trials", "finished", "stopped", "diverged",
        "crashed", "epochs", "device s", "settings",
    ]  # fmt: skip
    assert row_of(text, "A", "at")[2:4] == ["75.00", "1"]
    assert lines[-1] == SEARCH_CAVEAT and "±" not in text and "rank" not in text
    assert SEARCH_CAVEAT.startswith("Best single runs, not yet a comparison")
    assert "`kdtune confirm`" in SEARCH_CAVEAT
    assert text.startswith("Not confirmed: AT on A leads by search score (75.00 %), which is ")
    assert result_notes(build_sweep_tables([])) == []


def test_a_confirmed_sweep():
    text = shown(four_cells().tables, "markdown")
    assert row_of(text, "model") == [
        "model", "rank", "method", "test %", "over student", "validation %", "best validation %",
        "optimism", "seeds", "trials", "device h", "settings",
    ]  # fmt: skip
    at = row_of(text, "A", "1", "at")
    assert at[3].startswith("89.75 ± ") and at[4].startswith("+30.00 ± ")
    assert at[5:10] == ["75.00", "70.00", "-5.00", "3", "2"] and at[-1] == "lr=0.1"
    assert row_of(text, "A", "3", "student")[4] == ""
    ship, method = text.split("\n\n")[0].splitlines()
    assert ship.startswith(
        "Ship AT on A: 89.8 % (86.4–92.3) on test; all 5 others are shown to be "
    )
    assert method.startswith("AT is better than FitNets on average over 2 students by ")
    assert text.split("\n\n")[-1] == f"{INTERVAL_NOTE}\n"


def test_one_method_reaches_what_it_reaches():
    said = shown(one_method().tables).splitlines()
    assert said[0] == "Ship AT on A: 74.8 % (64.5–82.8) on test; no other student is a candidate."
    assert said[1] == ""


def test_at_most_three_sentences_stand_above_the_tables():
    sweep = one_model().search("at", "B", 0.7).confirm("at", "B", 0, [0.9] * 5, 0.74)
    costs = {"A": 9, "B": 7}
    sweep.confirm_events += [
        PROFILE.model_copy(update={"model": model, "parameters": n}) for model, n in costs.items()
    ]
    said = answer_sentences(sweep.tables, "s")
    assert [sentence.split(" by ")[0] for sentence in said[:2]] == [
        "Ship AT on A: 89.8 % (86.4–92.3) on test; AT on B is not shown to be worse",
        "AT is better than FitNets on A",
    ]
    assert said[2].startswith("Of these AT on B is the smallest: 7 parameters instead of 9, ")
    assert len(said) == 3


def test_a_student_that_is_better_on_test_has_a_word_why_it_is_not_chosen():
    sweep = one_model()
    assert better_on_test_note(sweep.tables.ship) is None
    sweep.search("kd", "A", 0.7).confirm("kd", "A", 0, [0.95] * 5, 0.7)
    assert "Validation alone chose" in better_on_test_note(sweep.tables.ship)
    assert better_on_test_note(Sweep().tables.ship) is None


def test_a_sweep_that_is_confirmed_in_part_shows_both_kinds():
    text = shown(half_confirmed().tables, "markdown")
    assert row_of(text, "A", "", "kd")[3:8] == ["incomplete", "", "", "", "60.00"]
    assert row_of(text, "B", "", "kd")[3] == "not_confirmed"
    assert row_of(text, "A", "1", "at")[3] == "ok"
    assert f"\nRows without validation %: b{SEARCH_CAVEAT[1:]}\n" in text
    assert "AT is better than FitNets on average over 2 students" in text


def test_a_diverged_seed_is_said_and_nobody_wins():
    text = shown(diverged_seed().tables, "markdown")
    assert row_of(text, "A", "", "student")[3] == "unstable"
    assert "student diverged in 1 of 4 seeds on A. No winner is declared." in text
    assert text.startswith("Ship AT on A: ")  # with student no candidate


def test_what_was_chosen_and_not_tested_is_no_result():
    sweep = one_method()
    sweep.image_scores = {}
    assert shown(sweep.tables).startswith("So far validation alone chose AT on A (75.00 %); ")


@pytest.mark.parametrize(("count", "unequal"), [(9, False), (8, True)])
def test_unequal_searches_are_said(count, unequal):
    sweep = Sweep().search("at", "A", *[0.7] * count).search("kd", "A", *[0.7] * 10)
    sweep.confirm("at", "A", 0, [0.8] * 3).confirm("kd", "A", 0, [0.7] * 3)
    said = "Unequal searches, and more trials alone help: trials on A at 8, kd 10."
    assert (said in shown(sweep.tables)) == unequal


def test_that_test_was_read_for_two_configurations_of_a_cell_is_said():
    sweep = one_method().search("at", "A", 0.7, 0.8).confirm("at", "A", 1, [0.7] * 3)
    said = "Test was read for more than one configuration of a cell: 2 configurations, 6 networks"
    assert said in shown(sweep.tables)


@pytest.mark.parametrize(
    "make", [Sweep, one_method, one_model, half_confirmed, diverged_seed, four_cells]
)
def test_what_stays_when_something_is_missing(make):
    tables = make().tables
    for form in ("table", "markdown"):
        text = shown(tables, form)
        assert all(method in text for method in tables.leaderboard.method)
        assert (SEARCH_CAVEAT[1:] in text) == (make in (Sweep, half_confirmed))


def test_forms_for_programs_hold_all_columns_unrounded():
    tables = four_cells().tables
    csv = pd.read_csv(io.StringIO(shown(tables, "csv")))
    assert csv.columns.tolist() == LEADERBOARD.names
    exact = tables.leaderboard.test_half_width_points.tolist()
    assert csv.test_half_width_points.tolist() == pytest.approx(exact, rel=1e-15)
    rows = json.loads(render_table(tables.leaderboard, "json"))
    assert list(rows[0]) == LEADERBOARD.names and rows[0]["trial_id"] == "at-A-000"
    assert rows[0]["test_half_width_points"] == pytest.approx(exact[0], abs=1e-14)
    assert rows[0]["configuration"] == {"method": "at", "model": "A", "lr": 0.1}
    nothing = json.loads(render_table(build_sweep_tables(EVENTS).leaderboard, "json"))
    assert nothing[2]["trial_id"] is None and nothing[0]["rank"] is None
    assert nothing[2]["configuration"] is None


@pytest.mark.parametrize("columns", [80, 100, 400])
@pytest.mark.parametrize("make", [Sweep, four_cells])
def test_a_terminal_cuts_no_word_of_a_leaderboard(make, columns, monkeypatch):
    tables = make().tables
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = shown(tables, "table").splitlines()
    assert max(map(len, lines)) <= columns and "…" not in "".join(lines)
    below = [line for line in lines if line.startswith("at on ")]
    assert len(below) == (tables.leaderboard.method == "at").sum() * (columns < 400)
    assert all(any(name in line.split() for line in lines) for name in tables.leaderboard.method)


def test_sweeps_that_are_kept_apart_are_tables_of_their_own():
    tables = build_sweep_tables(EVENTS)
    abouts = {"a": CONDITIONS, "b": {**CONDITIONS, "epochs": 9}}
    boards = join_leaderboards(dict.fromkeys(abouts, tables), abouts)
    markdown = render_leaderboards(boards, "markdown", ["a and b are kept apart."])
    assert markdown.count("| sweep |") == 2 and markdown.count(SEARCH_CAVEAT) == 1
    assert (
        pd.read_csv(io.StringIO(render_leaderboards(boards, "csv"))).sweep.tolist()
        == ["a"] * 3 + ["b"] * 3
    )


def test_a_baseline_that_comes_first_hides_no_hyperparameter():
    events = sorted(EVENTS, key=lambda e: "at-" in getattr(e, "trial_id", ""))
    tables = build_sweep_tables(events)
    assert tables.trials.columns[-3:].tolist() == ["lr", "beta", "configuration"]
    assert "lr=0.1 beta=10" in shown(tables)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)"])
def test_no_text_in_a_csv_is_a_formula(text):
    table = pd.DataFrame({"reason": [text, "\t=1\r\n", None], "lr": [-1.0, 2.0, None]})
    back = pd.read_csv(io.StringIO(to_csv(table)), keep_default_na=False)
    assert back.reason.tolist() == [f"'{text}", r"\t=1\r\n", ""]
    assert back.lr.tolist() == ["-1.0", "2.0", ""]


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_hostile_text_is_shown_as_it_is(form):
    hostile = "[red]x[/red] \x1b[2J <b> a|b"
    events = [proposed("at-A-000", note=hostile), epoch("at-A-000", 1, 0.5)]
    events.append(ended("at-A-000", "finished"))
    text = render_leaderboards(boards_of(build_sweep_tables(events)), form, [hostile])
    assert "\x1b" not in text
    bar = r"a\|b" if form == "markdown" else "a|b"
    assert rf"note=[red]x[/red] \x1b[2J <b> {bar}" in text
    assert text.endswith("[red]x[/red] \\x1b[2J <b> a|b\n")


def test_a_markdown_row_is_one_line_however_long_it_is():
    table = pd.DataFrame({"trial_id": ["a", "b|c"], "configuration": ["x y " * 900, "ж"]})
    lines = render_table(table, "markdown").splitlines()
    assert [line.count(" | ") for line in lines] == [1] * 4
    assert ("x y " * 900).strip() in lines[2] and "b\\|c" in lines[3]
    assert len({len(line) for line in lines}) == 1
    assert len(render_table(table, "table").splitlines()) == 2 + 2
