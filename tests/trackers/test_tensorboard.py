"""Trials as TensorBoard reads them back."""

import shutil
from collections import Counter

import pytest
from event_logs import add_times, repeat_events, sweep_opening, trial_events
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

from kdtune.trackers.tensorboard import TensorBoardTracker
from kdtune.trackers.tracker import HYPERPARAMETERS, TrackerFold

EVENTS = list(
    add_times(
        [
            sweep_opening(),
            *trial_events(0, [0.5, 0.75, 0.25], "finished"),
            *trial_events(1, [0.375], "stopped", hint_epochs=2),
            *trial_events(0, [0.125], "diverged", method="student"),
            *trial_events(2, [], "crashed"),
            *trial_events(3, [0.25]),
        ]
    )
)


def follow(folder, events, live=0):
    """Log events to TensorBoard; the last `live` ones are added while the sweep runs."""
    tracked = TrackerFold("TensorBoard", TensorBoardTracker(folder), print)
    known = len(events) - live
    for event in events[:known]:
        tracked.fold(event)
    tracked.start_logging()
    for event in events[known:]:
        tracked.fold(event)
    return tracked


def hparams(folder):
    """Return the columns of settings and metrics in the HParams tab, and its rows by trial."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(folder))
    context = Context(TBContext(data_provider=provider, logdir=str(folder)))
    asked = api_pb2.GetExperimentRequest()
    experiment = get_experiment.Handler(RequestContext(), context, "", asked).run()
    metrics = [info.name for info in experiment.metric_infos]
    asked = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=api_pb2.Status.values(),
        slice_size=99,
        col_params=[api_pb2.ColParams(metric=name) for name in metrics],
    )
    groups = list_session_groups.Handler(RequestContext(), context, "", asked).run()
    rows = {}
    for group in groups.session_groups:
        (session,) = group.sessions
        settings = {
            key: getattr(value, value.WhichOneof("kind")) for key, value in group.hparams.items()
        }
        figures = {value.name.tag: value.value for value in group.metric_values}
        rows[group.name] = settings, figures, api_pb2.Status.Name(session.status)
    return [info.name for info in experiment.hparam_infos], [m.tag for m in metrics], rows


def written(folder):
    """Return the number of times that each trial has each summary at each step."""
    return Counter(
        (path.parent.name, value.tag, event.step)
        for path in folder.rglob("*tfevents*")
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    )


@pytest.mark.parametrize("live", [0, 8, len(EVENTS) - 1])
def test_hparams_have_a_row_for_each_trial_with_its_settings_and_its_end(tmp_path, live):
    follow(tmp_path, EVENTS, live).close()
    settings, figures, rows = hparams(tmp_path)
    assert settings[:5] == ["alpha", "beta", "lr", "method", "model"]  # those that are shown
    assert set(settings) == set(HYPERPARAMETERS)
    assert set(rows) == {"at-A-000", "at-A-001", "student-A-000", "at-A-002", "at-A-003"}
    of, ends, status = rows["at-A-000"]
    assert of["method"] == "at" and of["model"] == "A"
    assert set(of) == set(HYPERPARAMETERS) - {"drop_rate", "drop_path_rate"}  # the network's own
    assert (of["lr"], of["beta"], of["batch_size"], of["augment"]) == (0.1, 1000.0, 64.0, "none")
    assert status == "STATUS_SUCCESS" and list(ends) == figures
    assert list(ends.values()) == [0.75, 0.25, 3.0, 4.5]
    assert rows["at-A-001"][0]["hint_epochs"] == 2.0
    assert rows["at-A-001"][1]["epochs"] == 1.0 and rows["at-A-001"][2] == "STATUS_SUCCESS"
    assert rows["student-A-000"][2] == rows["at-A-002"][2] == "STATUS_FAILURE"
    assert rows["at-A-003"][1] == {"best_validation_accuracy": 0.25, "validation_accuracy": 0.25}
    assert rows["at-A-003"][2] == "STATUS_UNKNOWN"


def test_each_run_says_where_its_settings_come_from(tmp_path):
    follow(tmp_path, [*EVENTS, *repeat_events(4, 0, [0.5], "finished")]).close()
    origins = {
        path.parent.name: value.tensor.string_val[0].decode()
        for path in tmp_path.rglob("*tfevents*")
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.tag.startswith("origin")
    }
    assert origins["at-A-000"] == "start" and origins["at-A-004"] == "repeat of at-A-000"
    assert set(origins) == set(hparams(tmp_path)[2])


def test_everything_is_logged_once_however_often_a_driver_is_killed(tmp_path):
    follow(tmp_path / "whole", EVENTS).close()
    for known in range(1, len(EVENTS)):  # after each event: the next is in the log, and no more
        follow(tmp_path / "killed", EVENTS[:known], live=1)
    follow(tmp_path / "killed", EVENTS).close()
    found = written(tmp_path / "killed")
    assert found == written(tmp_path / "whole") and set(found.values()) == {1}


@pytest.mark.parametrize("lost", ["ended", "at-A-000"])
def test_an_ended_trial_that_is_not_complete_is_written_again(tmp_path, lost):
    follow(tmp_path / "whole", EVENTS).close()
    follow(tmp_path / "killed", EVENTS).close()
    if lost == "ended":  # as if the driver was killed after the end was logged
        (tmp_path / "killed" / "at-A-000" / "ended").unlink()
    else:
        shutil.rmtree(tmp_path / "killed" / "at-A-000")
    kept = next((tmp_path / "killed" / "at-A-001").glob("*tfevents*"))
    before = kept.stat().st_mtime_ns
    follow(tmp_path / "killed", EVENTS).close()
    assert written(tmp_path / "killed") == written(tmp_path / "whole")
    assert kept.stat().st_mtime_ns == before


def test_a_run_that_is_proposed_again_replaces_the_first_one(tmp_path):
    again = [*EVENTS, *add_times(trial_events(2, [0.5, 0.5, 0.5], "finished"), len(EVENTS))]
    for live in (5, 0):
        follow(tmp_path, again, live).close()
        assert hparams(tmp_path)[2]["at-A-002"][1]["epochs"] == 3.0
        assert max(written(tmp_path).values()) == 1
