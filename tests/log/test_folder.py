"""The log, its folds, and the folder of a sweep."""

import json
import os
import re
import subprocess
import sys
import tempfile

import pytest
from event_logs import make_metrics, sweep_opening
from full_disk import file_size_limit
from hypothesis import given
from hypothesis import strategies as st

from kdtune.errors import DiskFullError, RunError, UserError
from kdtune.log.event_log import EventLog
from kdtune.log.events import EpochFinished
from kdtune.log.folder import SweepFolder


def event(n, **metrics):
    cell = {"trial_id": "at-A-000", "method": "at", "model": "A"}
    return EpochFinished(**cell, **dict(make_metrics(n, 0.5, **metrics)))


def line_of(event, **changes):
    return json.dumps({**event.model_dump(), **changes})


def numbers(events):
    return [e.epoch for e in events]


@pytest.fixture
def folder(tmp_path):
    """A sweep's folder with one event in its log."""
    folder = SweepFolder(tmp_path)
    with EventLog(folder.log_path, []) as log:
        log.append(event(1))
    return folder


def test_events_are_read_in_order(tmp_path):
    folder = SweepFolder(tmp_path)
    with EventLog(folder.log_path, []) as log:
        for n in range(1, 4):
            log.append(event(n))
            assert numbers(folder.load_events()) == list(range(1, n + 1))
    assert all(e.time > 1.7e9 and e.session_seconds >= 0 for e in folder.load_events())


def test_every_fold_sees_every_event_after_it_was_written(tmp_path):
    seen = []
    folder = SweepFolder(tmp_path)
    with EventLog(
        folder.log_path, [lambda e: seen.append((e.epoch, len(folder.load_events())))]
    ) as log:
        log.append(event(1))
        log.append(event(2))
    assert seen == [(1, 1), (2, 2)]


def test_on_open_the_folds_see_the_events_of_the_file(folder):
    seen = []
    with EventLog(folder.log_path, [seen.append]):
        pass
    assert numbers(seen) == [1]


def test_a_torn_last_line_is_skipped_and_cut_off_on_open(folder):
    whole = folder.log_path.read_bytes()
    line = line_of(event(2)).encode() + b"\n"
    for length in range(0, len(line), 9):
        folder.log_path.write_bytes(whole + line[:length])
        assert numbers(folder.load_events()) == [1]
        with EventLog(folder.log_path, []) as log:
            assert log.truncated_bytes == length and folder.log_path.read_bytes() == whole
            log.append(event(3))
        assert numbers(folder.load_events()) == [1, 3]


@given(st.binary(max_size=200))
def test_garbage_after_the_last_event_is_cut_off(garbage):
    with tempfile.TemporaryDirectory() as place:
        folder = SweepFolder(place)
        with EventLog(folder.log_path, []) as log:
            log.append(event(1))
        whole = folder.log_path.read_bytes()
        folder.log_path.write_bytes(whole + garbage)
        assert numbers(folder.load_events()) == [1]
        with EventLog(folder.log_path, []) as log:
            assert log.truncated_bytes == len(garbage)
        assert folder.log_path.read_bytes() == whole


@pytest.mark.parametrize(
    "line",
    ["null", "7", "[]", "{}", '{"kind": "epoch_finished"}', line_of(event(2), kind="rm"),
     "[" * 100_000, line_of(event(2), session_seconds=float("nan")),
     line_of(event(2), seconds=float("nan")), line_of(event(2), epoch=None)],
)  # fmt: skip
def test_a_line_that_is_no_event_is_damage_unless_it_is_the_last(folder, line):
    whole = folder.log_path.read_bytes()
    folder.log_path.write_bytes(whole + line.encode() + b"\n")
    assert numbers(folder.load_events()) == [1]
    folder.log_path.write_bytes(whole + line.encode() + b"\n" + whole)
    with pytest.raises(UserError, match=r"is damaged: line 2 is not an event, but others follow"):
        folder.load_events()


@pytest.mark.parametrize("key", ["trial_id", "method", "model"])
def test_names_with_a_path_are_no_event(folder, key):
    with open(folder.log_path, "a") as log:
        log.write(line_of(event(2), **{key: "../../elsewhere"}) + "\n")
    assert numbers(folder.load_events()) == [1]


def test_an_event_that_does_not_fit_the_others_is_damage(folder):
    def fold(e):
        raise KeyError("at-A-000")

    with pytest.raises(UserError, match=r"line 1 does not fit what stands before it \(KeyError"):
        EventLog(folder.log_path, [fold])


def test_bytes_of_another_process_are_cut_off(tmp_path):
    folder = SweepFolder(tmp_path)
    with EventLog(folder.log_path, []) as log:
        log.append(event(1))
        with open(folder.log_path, "ab") as other:
            other.write(b"garbage")
        log.append(event(2))
        assert numbers(folder.load_events()) == [1, 2]
        folder.log_path.write_bytes(b"")
        with pytest.raises(RunError, match="was shortened by another program"):
            log.append(event(3))


def test_a_value_that_json_lacks_is_refused_and_leaves_the_log_intact(tmp_path):
    with EventLog(tmp_path / "log.jsonl", []) as log:
        with pytest.raises(ValueError, match="JSON"):
            log.append(event(1).model_copy(update={"lr": float("nan")}))
        log.append(event(2))
    assert numbers(SweepFolder(tmp_path).load_events()) == [2]


@pytest.mark.parametrize("room", [1, 400, 460, 1000])
def test_on_a_full_disk_the_log_keeps_complete_events_and_takes_no_more(tmp_path, room):
    folder, seen = SweepFolder(tmp_path), []
    with file_size_limit(room) as lift, EventLog(folder.log_path, [seen.append]) as log:
        with pytest.raises(DiskFullError, match=r"no room to write .*log\.jsonl \(file too"):
            for n in range(1, 4):
                log.append(event(n))
        lift()
        with pytest.raises(DiskFullError):
            log.append(event(9))
        assert log.failure is not None
    content = folder.log_path.read_bytes()
    assert content == b"" or content.endswith(b"\n")
    assert numbers(folder.load_events()) == numbers(seen) == list(range(1, len(seen) + 1))


def test_a_folder_without_a_log_is_no_sweep(tmp_path):
    with pytest.raises(UserError, match=r"is not the folder of a sweep: it has no log\.jsonl"):
        SweepFolder(tmp_path).load_events()
    with pytest.raises(UserError, match="There is no folder .*gone"):
        SweepFolder(tmp_path / "gone").load_events()


def test_a_log_without_the_sweeps_settings_is_damaged(folder):
    with pytest.raises(UserError, match="does not begin with the sweep's settings"):
        folder.load_opening_events()


def test_a_folder_appears_when_it_is_complete(tmp_path):
    folder = SweepFolder(tmp_path / "results" / "x")
    with pytest.raises(ZeroDivisionError), folder.create_atomically() as part:
        part.config_path.write_text("a")
        raise ZeroDivisionError
    assert list((tmp_path / "results").iterdir()) == []
    with folder.create_atomically() as part:
        part.log_path.write_text("")
        assert not folder.path.exists()
    assert [p.name for p in folder.path.iterdir()] == ["log.jsonl"]
    with pytest.raises(UserError, match="already exists; .*resume it: kdtune resume"):
        with folder.create_atomically() as part:
            part.log_path.write_text("")
    assert [p.name for p in (tmp_path / "results").iterdir()] == ["x"]


HOLD = """
import sys
from kdtune.log.folder import SweepFolder
with SweepFolder(sys.argv[1]).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_driver_is_told_who_holds_the_sweep_and_a_dead_one_holds_nothing(tmp_path):
    folder = SweepFolder(tmp_path)
    with EventLog(folder.log_path, []) as log:
        log.append(sweep_opening())
    assert folder.is_locked() is False
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with holder:
        assert holder.stdout.readline() == "held\n"
        assert folder.is_locked() is True
        said = re.escape(f"{tmp_path} is being run by process {holder.pid} on ")
        with pytest.raises(UserError, match=said), folder.locked():
            pass
        holder.kill()
        holder.wait()
        assert folder.is_locked() is False
        with folder.locked():
            pass


@pytest.mark.parametrize(("place", "path"), [(".", "."), ("best", "..")])
def test_the_current_folder_has_the_name_of_a_sweep(tmp_path, monkeypatch, place, path):
    folder = SweepFolder(tmp_path / "x")
    (folder.path / "best").mkdir(parents=True)
    with EventLog(folder.log_path, []) as log:
        log.append(sweep_opening())
    monkeypatch.chdir(folder.path / place)
    assert SweepFolder(path).path == folder.path and SweepFolder(path).is_sweep()
    SweepFolder(path).remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "best", "log.jsonl"])
def test_a_folder_with_links_is_refused(tmp_path, name):
    folder = SweepFolder(tmp_path / "x")
    folder.path.mkdir()
    (folder.path / name).symlink_to(tmp_path)
    with pytest.raises(UserError, match="is a link; a sweep's folder must contain its own files"):
        with folder.locked():
            pass


def test_files_have_the_modes_of_the_users_umask(tmp_path):
    before = os.umask(0o027)
    try:
        folder = SweepFolder(tmp_path / "results" / "x")
        with folder.create_atomically() as part, EventLog(part.log_path, []) as log:
            log.append(sweep_opening())
        with folder.locked():
            pass
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o777 for p in [folder.path, *folder.path.iterdir()]}
    assert modes == {"x": 0o750, "log.jsonl": 0o640, "driver.lock": 0o640}


def test_the_colon_of_a_models_name_is_a_dot_in_names_of_files(tmp_path):
    named = {"method": "at", "model": "torchvision:resnet34"}
    best = SweepFolder(tmp_path).best_path(**named)
    assert best == tmp_path / "best" / "at-torchvision.resnet34.yaml"
    log = tmp_path / "log.jsonl"
    log.write_text(line_of(event(1), model=named["model"]) + "\n")
    assert [e.model for e in SweepFolder(tmp_path).load_events()] == [named["model"]]
    for bad in ({"model": "torchvision:a/b"}, {"trial_id": "at:A-000"}):
        log.write_text(line_of(event(1), **bad) + "\n")
        assert SweepFolder(tmp_path).load_events() == []


def test_a_log_of_an_earlier_version_is_an_error(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"event": "sweep", "time": 1, "session_seconds": 1}\n')
    with pytest.raises(UserError, match=r"was written by kdtune 0\.1, which this version cannot"):
        SweepFolder(tmp_path).load_events()
