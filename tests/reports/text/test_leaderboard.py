"""Text and JSON of sweeps' folders: answers first, then tables, then notes."""

import json

import pytest
from report_sweeps import PROFILE, Sweep, four_cells, one_method
from sweep_folders import write_sweep_folder

from kdtune.errors import UserError
from kdtune.reports.tables.notes import INTERVAL_NOTE, SEARCH_CAVEAT
from kdtune.reports.tables.ship import ShipLimits
from kdtune.reports.text.leaderboard import leaderboard_text

CLASSES = "abcdefghij"  # so many that all students learned something


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder of a confirmed sweep whose students were measured."""
    sweep = four_cells()
    for model, parameters, latency in (("A", 2_000_000, 2.0), ("B", 1_000_000, 1.0)):
        update = {"model": model, "parameters": parameters, "latency_ms": latency}
        sweep.confirm_events.append(PROFILE.model_copy(update=update))
    return write_sweep_folder(tmp_path_factory.mktemp("sweeps") / "s", sweep, classes=CLASSES).path


def test_answers_stand_above_the_tables_and_notes_below(measured):
    answers, ship, board, notes = leaderboard_text([measured], "markdown").split("\n\n")
    assert [line.split(" by ")[0] for line in answers.splitlines()] == [
        "Ship AT on A: 89.8 % (86.4–92.3) on test; all 5 others are shown to be worse",
        "AT is better than FitNets on average over 2 students",
    ]
    heads, _, best = ship.splitlines()
    assert "| student " in heads and "parameters" in heads
    assert [cell.strip() for cell in best.split("|")[1:3]] == ["AT on A", "best"]
    assert len(board.splitlines()) == 2 + 6 + 1
    teacher = [cell.strip() for cell in board.splitlines()[-1].split("|")]
    assert teacher[1:4] == ["ResNet18", "", "(teacher)"] and "90.00" in teacher[4:]
    assert notes.splitlines() == [
        "Teacher: ResNet18, validation 90.00 %.",
        "Always answering one class gives 10.0 % of the validation images.",
        INTERVAL_NOTE,
    ]


def test_a_search_has_the_advice_on_searches(tmp_path):
    path = write_sweep_folder(
        tmp_path / "s", Sweep().search("at", "A", 0.6, 0.7), classes=CLASSES
    ).path
    said = leaderboard_text([path], "table").splitlines()
    assert said[0].startswith("Not confirmed: AT on A leads by search score (70.00 %), ")
    assert SEARCH_CAVEAT in said and any("grace period" in line for line in said)


def test_limits_choose_the_student_and_not_the_table(measured):
    for limits in (ShipLimits(max_parameters=1_500_000), ShipLimits(max_latency_ms=1.5)):
        text = leaderboard_text([measured], "table", limits)
        assert text.startswith("Within the limits ship AT on B: ")
        assert len(text.split("\n\n")[2].splitlines()) == 2 + 6 + 1
    with pytest.raises(UserError, match="No student has at most 10 parameters; the least is "):
        leaderboard_text([measured], "csv", ShipLimits(max_parameters=10))


def test_json_is_an_object_with_both_answers(measured, tmp_path):
    content = json.loads(leaderboard_text([measured], "json"))
    assert list(content) == ["ship", "method", "not_learned", "teacher", "leaderboard"]
    assert content["ship"]["sentence"].startswith("Ship AT on A: ")
    [best] = content["ship"]["set"]
    assert (best["method"], best["model"], best["parameters"]) == ("at", "A", 2_000_000)
    assert content["method"]["model"] == "all" and content["method"]["verdict"] == "better_a"
    assert content["method"]["advice"] is None
    assert content["teacher"]["validation_accuracy"] == 0.9
    assert content["leaderboard"][0]["configuration"]["lr"] == 0.1

    other = write_sweep_folder(tmp_path / "t", one_method(), classes=CLASSES).path
    several = json.loads(leaderboard_text([measured, other], "json"))
    assert several[str(measured)] == content
    assert several[str(other)]["method"] is None

    searched = write_sweep_folder(
        tmp_path / "u", Sweep().search("at", "A", 0.6), classes=CLASSES
    ).path
    ship = json.loads(leaderboard_text([searched], "json"))["ship"]
    assert ship["set"] is None and ship["sentence"].startswith("Not confirmed: ")


def test_of_several_sweeps_each_line_says_whose_it_is(measured, tmp_path):
    other = write_sweep_folder(tmp_path / "t", one_method(), classes=CLASSES).path
    answers, ship, *_ = leaderboard_text([measured, other], "markdown").split("\n\n")
    assert [line.split(": ")[0] for line in answers.splitlines()] == [
        str(measured), str(measured), str(other),
    ]  # fmt: skip
    assert f"| {measured} | AT on A |" in ship
