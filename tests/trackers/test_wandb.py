"""Trials as W&B's file format holds them, without a network."""

import json
import struct

import pytest
from event_logs import add_times, repeat_events, sweep_opening, trial_events

from kdtune.trackers.tracker import TrackerFold
from kdtune.trackers.wandb import WandbTracker

EVENTS = list(
    add_times(
        [
            sweep_opening(),
            *trial_events(0, [0.5, 0.75], "finished"),
            *repeat_events(1, 0, [0.375], "diverged"),
        ]
    )
)


def records(path):
    """Return the run, its history, its summary and its exit codes from a file."""
    from wandb.proto.wandb_internal_pb2 import Record

    run, history, summary, ends = None, [], {}, []
    for data in _pieces(path.read_bytes()):
        record = Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = run or record.run
        elif kind == "history":
            history.append({_key(i): json.loads(i.value_json) for i in record.history.item})
        elif kind == "summary":
            summary |= {_key(i): json.loads(i.value_json) for i in record.summary.update}
        elif kind == "exit":
            ends.append(record.exit.exit_code)
    return run, history, summary, ends


def _pieces(content):
    """Yield the records of a log in LevelDB's format, after W&B's 7 bytes."""
    position, piece, block = 7, b"", 32768
    while position + 7 <= len(content):
        if (left := block - position % block) < 7:
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, position)
        position += 7 + size
        piece += content[position - size : position]
        if kind in (1, 4):  # whole, or the last part
            yield piece
            piece = b""


def _key(item):
    return item.key or item.nested_key[0]


@pytest.mark.slow
def test_each_trial_is_one_run_however_often_a_driver_is_killed(tmp_path, monkeypatch, capfd):
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for known in (3, 5, len(EVENTS)):
        tracked = TrackerFold("W&B", WandbTracker(tmp_path / "wandb", "s"), print)
        for event in EVENTS[: known - 1]:
            tracked.fold(event)
        tracked.start_logging()
        tracked.fold(EVENTS[known - 1])
        tracked.close()
    wandb.teardown()  # waits for the process that writes
    found = {}
    for path in tmp_path.glob("wandb/offline-run-*/*.wandb"):
        run, *rest = records(path)
        assert run.display_name not in found
        found[run.display_name] = run, *rest
    assert set(found) == {"at-A-000", "at-A-001"}
    run, history, summary, ends = found["at-A-000"]
    assert (run.project, run.run_group) == ("s", "at-A")
    assert (run.notes, found["at-A-001"][0].notes) == ("start", "repeat of at-A-000")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["lr"] == 0.1 and config["method"] == "at"
    assert [(row["_step"], row["validation_accuracy"]) for row in history] == [(1, 0.5), (2, 0.75)]
    assert {key: summary[key] for key in ("state", "epochs", "device_seconds")} == {
        "state": "finished", "epochs": 2, "device_seconds": 3.0,
    }  # fmt: skip
    assert ends == [0] and found["at-A-001"][3] == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["wandb"]
    assert capfd.readouterr() == ("", "")
