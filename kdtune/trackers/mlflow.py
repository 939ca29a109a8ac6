"""Every trial as a run of MLflow, in an experiment that is called as the sweep.

Runs go to a database in the sweep's folder, or to the server that MLFLOW_TRACKING_URI names. It is
told in the driver's process, at every epoch: a slow server holds the sweep up.
"""

import logging
import os
from pathlib import Path
from typing import Any

from kdtune.log.events import (
    SUCCESSFUL_STATES,
    EpochFinished,
    Event,
    LogOpening,
    TrialEnded,
    TrialProposed,
)
from kdtune.runtime.optional_imports import import_optional
from kdtune.storage.files import make_folder
from kdtune.trackers.tracker import select_hyperparameters, select_metrics

TRACKING_URI_VARIABLE = "MLFLOW_TRACKING_URI"
"""The variable that names a server."""

RUNS_PER_PAGE = 1000
"""Runs that are asked for at once."""


def import_mlflow() -> Any:
    """Import MLflow, which then reports to nobody how it is used.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # The driver waits: a server that is gone must not hold up trials, or a SIGTERM.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    return import_optional("mlflow", "mlflow")


class MLflowTracker:
    """Tells MLflow of trials, as `kdtune.trackers.tracker.Tracker` has it.

    A trial that goes on after a resume stays one run. It is known by what the log was opened with
    and when it was asked for.

    Args:
        folder: for the database.
        experiment: the sweep's name.
    """

    def __init__(self, folder: Path, experiment: str):
        self.folder, self.experiment = folder, experiment
        self._runs: dict[str, Any] = {}
        self._last_epochs: dict[str, int] = {}

    def setup(self, opening: LogOpening) -> None:
        """Find the runs that are there."""
        entities = import_mlflow().entities
        self._metric, self._param, self._tag = entities.Metric, entities.Param, entities.RunTag
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)  # they tell of every table made
        self._log_id = f"{opening.kind} {opening.time}"
        uri, artifacts = os.environ.get(TRACKING_URI_VARIABLE), None
        if not uri:
            make_folder(self.folder)
            uri = f"sqlite:///{self.folder.absolute() / 'mlflow.db'}"
            artifacts = (self.folder.absolute() / "artifacts").as_uri()
        self._client = import_mlflow().MlflowClient(tracking_uri=uri)
        existing = self._client.get_experiment_by_name(self.experiment)
        self._experiment_id = (
            existing.experiment_id
            if existing is not None
            else self._client.create_experiment(self.experiment, artifacts)
        )
        query, page_token = f"tags.log = '{self._log_id}'", None
        while page_token != "":
            page = self._client.search_runs(
                [self._experiment_id],
                query,
                max_results=RUNS_PER_PAGE,
                page_token=page_token or None,
            )
            self._runs |= {run.data.tags["trial_id"]: run for run in page}
            page_token = page.token or ""

    def is_trial_logged(self, proposed: TrialProposed) -> bool:
        """Whether the run of a trial has ended."""
        run = self._find_run(proposed)
        return run is not None and run.info.status in ("FINISHED", "FAILED")

    def _find_run(self, proposed: TrialProposed) -> Any:
        """The run of a trial; None if there is none, or one from before it was asked for again."""
        run = self._runs.get(proposed.trial_id)
        return (
            run if run is not None and run.info.start_time == _to_milliseconds(proposed) else None
        )

    def log_trial_start(self, proposed: TrialProposed) -> None:
        """Begin a run, or go on with it."""
        trial_id, client = proposed.trial_id, self._client
        if (run := self._find_run(proposed)) is not None:
            logged = client.get_metric_history(run.info.run_id, "validation_accuracy")
            self._last_epochs[trial_id] = max((metric.step for metric in logged), default=0)
            return
        if trial_id in self._runs:
            client.delete_run(self._runs[trial_id].info.run_id)
        cell = proposed.cell_name
        tags = {"log": self._log_id, "trial_id": trial_id, "cell": cell, "origin": proposed.origin}
        run = client.create_run(self._experiment_id, _to_milliseconds(proposed), tags, trial_id)
        params = [
            self._param(key, str(value)) for key, value in select_hyperparameters(proposed).items()
        ]
        client.log_batch(run.info.run_id, params=params)
        self._runs[trial_id], self._last_epochs[trial_id] = run, 0

    def log_epoch(self, epoch: EpochFinished) -> None:
        """Tell the figures of an epoch, unless they were told."""
        if epoch.epoch > self._last_epochs[epoch.trial_id]:
            self._log_metrics(epoch, select_metrics(epoch), epoch.epoch)

    def log_trial_end(self, ended: TrialEnded, device_seconds: float) -> None:
        """End a run."""
        tags = [self._tag("state", ended.state), self._tag("reason", ended.reason)]
        metrics = {"epochs": float(ended.epochs), "device_seconds": device_seconds}
        self._log_metrics(ended, metrics, ended.epochs, tags)
        status = "FINISHED" if ended.state in SUCCESSFUL_STATES else "FAILED"
        run = self._runs[ended.trial_id]
        self._client.set_terminated(run.info.run_id, status, _to_milliseconds(ended))

    def _log_metrics(
        self,
        event: EpochFinished | TrialEnded,
        values: dict[str, float],
        step: int,
        tags: Any = (),
    ) -> None:
        metrics = [
            self._metric(key, value, _to_milliseconds(event), step)
            for key, value in values.items()
        ]
        self._client.log_batch(self._runs[event.trial_id].info.run_id, metrics, tags=tags)

    def close(self) -> None:
        """Nothing: runs of trials under way go on when these do."""


def _to_milliseconds(event: Event) -> int:
    return round(1000 * event.time)
