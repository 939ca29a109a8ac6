"""MLflow tracker: one run per trial, in an experiment named after the sweep."""

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdtune.log.events import EpochFinished, LogOpening, TrialEnded, TrialEvent, TrialProposed
from kdtune.runtime.optional_imports import import_optional
from kdtune.storage.files import make_folder
from kdtune.trackers.tracker import Tracker, select_hyperparameters, select_metrics


def import_mlflow() -> Any:
    """Import MLflow, if it is installed, without its telemetry."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # The driver waits, so an unreachable server must not delay trials, or a SIGTERM.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    return import_optional("mlflow", "mlflow")


@dataclass(eq=False)
class MLflowTracker(Tracker):
    """Logs trials to MLflow; the runs of trials that have not ended stay open."""

    folder: Path
    experiment: str
    _runs: dict[str, Any] = field(default_factory=dict, init=False)
    _last_epochs: dict[str, int] = field(default_factory=dict, init=False)

    def setup(self, opening: LogOpening) -> None:
        mlflow = import_mlflow()
        self._entities = mlflow.entities
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)  # they log every table they create
        self._log_id = f"{opening.kind} {opening.time}"
        uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
        if not uri:
            make_folder(self.folder)
            uri = f"sqlite:///{self.folder.absolute() / 'mlflow.db'}"
            artifacts = (self.folder.absolute() / "artifacts").as_uri()
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        if (existing := self._client.get_experiment_by_name(self.experiment)) is not None:
            self._experiment_id = existing.experiment_id
        else:
            self._experiment_id = self._client.create_experiment(self.experiment, artifacts)
        query, page_token = f"tags.log = '{self._log_id}'", None
        while page_token != "":
            ids = [self._experiment_id]
            page = self._client.search_runs(ids, query, max_results=1000, page_token=page_token)
            self._runs |= {run.data.tags["trial_id"]: run for run in page}
            page_token = page.token or ""

    def _find_run(self, proposed: TrialProposed) -> Any:
        run = self._runs.get(proposed.trial_id)
        return run if run and run.info.start_time == _to_milliseconds(proposed) else None

    def is_trial_logged(self, proposed: TrialProposed) -> bool:
        run = self._find_run(proposed)
        return run is not None and run.info.status in ("FINISHED", "FAILED")

    def log_trial_start(self, proposed: TrialProposed) -> None:
        trial_id, client = proposed.trial_id, self._client
        if (run := self._find_run(proposed)) is not None:
            logged = client.get_metric_history(run.info.run_id, "validation_accuracy")
            self._last_epochs[trial_id] = max((metric.step for metric in logged), default=0)
            return
        if trial_id in self._runs:  # it was proposed again
            client.delete_run(self._runs[trial_id].info.run_id)
        tags = {"log": self._log_id, "trial_id": trial_id}
        tags |= {"cell": proposed.cell_name, "origin": proposed.describe_origin()}
        run = client.create_run(self._experiment_id, _to_milliseconds(proposed), tags, trial_id)
        settings = select_hyperparameters(proposed).items()
        params = [self._entities.Param(key, str(value)) for key, value in settings]
        client.log_batch(run.info.run_id, params=params)
        self._runs[trial_id], self._last_epochs[trial_id] = run, 0

    def log_epoch(self, epoch: EpochFinished) -> None:
        if epoch.epoch > self._last_epochs[epoch.trial_id]:
            self._log(epoch, epoch.epoch, select_metrics(epoch))

    def log_trial_end(self, ended: TrialEnded, device_seconds: float) -> None:
        values = {"epochs": float(ended.epochs), "device_seconds": device_seconds}
        self._log(ended, ended.epochs, values, state=str(ended.state), reason=ended.reason)
        status = "FINISHED" if ended.is_successful else "FAILED"
        run_id = self._runs[ended.trial_id].info.run_id
        self._client.set_terminated(run_id, status, _to_milliseconds(ended))

    def _log(self, event: TrialEvent, step: int, values: dict[str, float], **tags: str) -> None:
        time, entities = _to_milliseconds(event), self._entities
        metrics = [entities.Metric(key, value, time, step) for key, value in values.items()]
        run_tags = [entities.RunTag(key, value) for key, value in tags.items()]
        self._client.log_batch(self._runs[event.trial_id].info.run_id, metrics, tags=run_tags)


def _to_milliseconds(event: TrialEvent) -> int:
    return round(1000 * event.time)
