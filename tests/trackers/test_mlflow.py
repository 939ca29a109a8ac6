"""Trials as MLflow's client reads them."""

import sys

import pytest
from event_logs import add_times, repeat_events, sweep_opening, trial_events

from kdtune.errors import UserError
from kdtune.trackers.mlflow import MLflowTracker
from kdtune.trackers.registry import require_tracker_packages
from kdtune.trackers.tracker import TrackerFold

EVENTS = list(
    add_times(
        [
            sweep_opening(),
            *trial_events(0, [0.5, 0.75, 0.25], "finished"),
            *trial_events(1, [0.375], "diverged"),
            *repeat_events(2, 0, [0.25]),
        ]
    )
)


def follow(folder, events, name):
    tracked = TrackerFold("MLflow", MLflowTracker(folder, name), print)
    for event in events[:-1]:
        tracked.fold(event)
    tracked.start_logging()
    tracked.fold(events[-1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # MLflow's use
def test_each_trial_is_one_run_however_often_a_driver_is_killed(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for known in (2, 4, 5):
        follow(tmp_path / "mlflow", EVENTS[:known], "s")
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow/mlflow.db")

    def runs():
        (experiment,) = client.search_experiments(filter_string="name = 's'")
        found = client.search_runs([experiment.experiment_id])
        return {run.info.run_name: run for run in found}, len(found)

    before = runs()[0]
    follow(tmp_path / "mlflow", EVENTS, "s")
    found, count = runs()
    assert set(found) == {"at-A-000", "at-A-001", "at-A-002"} and count == 3
    assert all(found[name].info.run_id == run.info.run_id for name, run in before.items())
    states = [found[f"at-A-00{n}"].info.status for n in range(3)]
    assert states == ["FINISHED", "FAILED", "RUNNING"]
    first = found["at-A-000"]
    assert first.data.params["lr"] == "0.1" and first.data.params["method"] == "at"
    tags = {key: first.data.tags[key] for key in ("cell", "origin", "state", "reason")}
    assert tags == {
        "cell": "at-A", "origin": "start", "state": "finished", "reason": "it was finished",
    }  # fmt: skip
    assert found["at-A-002"].data.tags["origin"] == "repeat of at-A-000"
    assert first.data.metrics["best_validation_accuracy"] == 0.75
    assert (first.data.metrics["epochs"], first.data.metrics["device_seconds"]) == (3.0, 4.5)
    history = client.get_metric_history(first.info.run_id, "validation_accuracy")
    assert [(m.step, m.value) for m in history] == [(1, 0.5), (2, 0.75), (3, 0.25)]

    # A trial that is proposed again is another run, and another sweep of that name has its own.
    again = [*EVENTS, *add_times(trial_events(1, [0.5], "finished"), 20)]
    follow(tmp_path / "mlflow", again, "s")
    found, count = runs()
    assert count == 3 and found["at-A-001"].info.status == "FINISHED"
    follow(
        tmp_path / "mlflow", list(add_times([sweep_opening(), *trial_events(0, [0.5])], 99)), "s"
    )
    assert runs()[1] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_an_error(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"needs {name}, .* pip install '.\[{name}\]'"):
        require_tracker_packages([name])
