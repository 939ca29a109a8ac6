"""The log: whole lines only, and folds that see every event once."""

import json

import pytest

from kdtune.errors import UserError
from kdtune.results import Log, SweepFolder


def plain(events):
    return [{k: v for k, v in event.items() if k != "time"} for event in events]


def test_events_come_back_in_order(tmp_path):
    folder = SweepFolder(tmp_path)
    with Log(folder.log, []) as log:
        for n in range(3):
            log.append({"event": "epoch", "n": n})
            assert plain(folder.events()) == [{"event": "epoch", "n": m} for m in range(n + 1)]
    assert all(event["time"] > 1.7e9 for event in folder.events())


def test_every_fold_sees_every_event_after_it_was_written(tmp_path):
    seen = []
    folder = SweepFolder(tmp_path)
    with Log(folder.log, [lambda e: seen.append((e["n"], len(folder.events())))]) as log:
        log.append({"n": 1})
        log.append({"n": 2})
    assert seen == [(1, 1), (2, 2)]


def test_on_open_the_folds_see_what_is_there(tmp_path):
    with Log(tmp_path / "log.jsonl", []) as log:
        log.append({"n": 1})
    seen = []
    with Log(tmp_path / "log.jsonl", [seen.append]):
        pass
    assert plain(seen) == [{"n": 1}]


def test_a_torn_last_line_is_passed_over_and_cut_off_on_open(tmp_path):
    folder = SweepFolder(tmp_path)
    with Log(folder.log, []) as log:
        log.append({"n": 1})
    whole = folder.log.read_bytes()
    line = json.dumps({"n": 2}).encode() + b"\n"
    for length in range(len(line)):
        folder.log.write_bytes(whole + line[:length])
        assert plain(folder.events()) == [{"n": 1}]
        with Log(folder.log, []) as log:
            assert folder.log.read_bytes() == whole
            log.append({"n": 3})
        assert plain(folder.events()) == [{"n": 1}, {"n": 3}]


def test_a_value_that_json_lacks_is_refused_and_leaves_the_log_whole(tmp_path):
    with Log(tmp_path / "log.jsonl", []) as log:
        with pytest.raises(ValueError, match="JSON"):
            log.append({"loss": float("nan")})
        log.append({"n": 1})
    assert plain(SweepFolder(tmp_path).events()) == [{"n": 1}]


def test_damage_inside_the_log_is_told(tmp_path):
    folder = SweepFolder(tmp_path)
    folder.log.write_bytes(b'{"n": 1}\ngarbage\n{"n": 2}\n')
    with pytest.raises(UserError, match=r"log\.jsonl is damaged: line 2 is not JSON"):
        folder.events()


def test_a_folder_without_a_log_is_no_sweep(tmp_path):
    with pytest.raises(UserError, match=r"is not the folder of a sweep: it has no log\.jsonl"):
        SweepFolder(tmp_path).events()
    with pytest.raises(UserError, match="There is no folder .*gone"):
        SweepFolder(tmp_path / "gone").events()
