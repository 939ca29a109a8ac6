"""Commands on the results of sweeps: their list, removal, status and tables."""

import io
import json
import sys

import pytest
from command_line import command_process
from event_logs import sweep_opening, trial_events, write_log
from report_sweeps import one_method
from sweep_folders import write_sweep_folder

from kdtune.log.folder import SweepFolder


def test_sweeps_are_listed_without_torch_and_ray(tmp_path):
    write_sweep_folder(tmp_path / "s", one_method())
    write_sweep_folder(tmp_path / "results" / "s", one_method())
    with command_process() as run:
        for words in ("list", "list --format json", "status s --format json"):
            code, out, _, modules = run(tmp_path, words)
            assert code == 0 and not {"torch", "ray"} & {*modules}
            assert "complete" in out


def test_sweeps_are_listed_with_their_states_and_best_cells(kdtune, tmp_path):
    code, out, err = kdtune("list")
    assert (code, out) == (0, "") and "There is no sweep in " in err
    write_log(tmp_path / "results" / "open", [sweep_opening(), *trial_events(0, [0.5, 0.75])])
    write_log(tmp_path / "results" / ".open.12.removed", [sweep_opening()])
    (tmp_path / "results" / "broken").mkdir()
    (tmp_path / "results" / "broken" / "log.jsonl").write_text("{}\n{}\n")
    (tmp_path / "results" / "a-file").touch()
    rows = json.loads(kdtune("list", "--format", "json")[1])
    assert rows[0] == {"name": "broken", "state": "damaged"}
    [row] = rows[1:]
    assert (row["name"], row["state"], row["search_best_percent"]) == ("open", "interrupted", 75)
    lines = kdtune("list")[1].splitlines()
    assert lines[-1].split()[:2] == ["open", "interrupted"] and lines[-1].split()[-1] == "at-A"


def test_a_sweep_is_removed_when_the_user_says_yes(kdtune, tmp_path, monkeypatch):
    places = {name: tmp_path / "results" / name for name in "abc"}
    for place in places.values():
        write_log(place, [sweep_opening()])
    for answer, sentence in (("", "give --yes"), ("n\n", "Nothing was removed"), ("\n", "Not")):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        code, out, err = kdtune("rm", "a")
        assert code == 2 and not out and sentence in err and places["a"].exists()
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert kdtune("status", "a")[0] == 0  # results/a
    assert kdtune("rm", "a")[:2] == (0, "removed results/a\n")
    with SweepFolder(places["b"]).locked():
        code, _, err = kdtune("rm", "b", "--yes")
        assert code == 2 and "is being run by process" in err
    assert kdtune("rm", "b", places["c"], "--yes")[0] == 0
    assert list((tmp_path / "results").iterdir()) == []


def test_the_status_of_a_sweep_as_json(kdtune, tmp_path):
    write_log(tmp_path / "s", [sweep_opening(), *trial_events(0, [0.5]), *trial_events(1, [0.25])])
    status = json.loads(kdtune("status", "s", "--format", "json")[1])
    assert (status["state"], status["run_by"]) == ("interrupted", None)
    assert (status["epochs_trained"], status["search_best_percent"]) == (2, 50)
    assert status["continue_with"] == "kdtune resume s"


@pytest.mark.parametrize(
    ("words", "encoding"),
    [("leaderboard s", "ascii"), ("leaderboard s", "cp1252"), ("--help", "ascii")],
)
def test_output_that_is_not_utf8_has_other_characters_in_their_place(
    kdtune, tmp_path, monkeypatch, words, encoding
):
    write_sweep_folder(tmp_path / "s", one_method())
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    assert kdtune(*words.split())[0] == 0
    out.flush()
    assert out.buffer.getvalue().decode(encoding).strip()
