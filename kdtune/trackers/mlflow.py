"""Every trial as a run of MLflow, in an experiment that is called as the sweep.

Runs go to a database in the sweep's folder, or to the server that MLFLOW_TRACKING_URI names. It is
told in the driver's process, at every epoch: a slow server holds the sweep up.
"""

import logging
import os
from pathlib import Path
from typing import Any

from kdtune.log.events import SOUND, Event
from kdtune.runtime.optional_imports import extra
from kdtune.storage.files import make_folder
from kdtune.trackers.tracker import FINAL, figures, hyperparameters

SERVER = "MLFLOW_TRACKING_URI"
"""The variable that names a server."""

PAGE = 1000
"""Runs that are asked for at once."""


def load_mlflow() -> Any:
    """Import MLflow, which then reports to nobody how it is used.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # The driver waits: a server that is gone must not hold up trials, or a SIGTERM.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    return extra("mlflow", "mlflow")


class MLflow:
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
        self._last: dict[str, int] = {}

    def begin(self, opened: Event) -> None:
        """Find the runs that are there."""
        entities = load_mlflow().entities
        self._metric, self._param, self._tag = entities.Metric, entities.Param, entities.RunTag
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)  # they tell of every table made
        self._log = f"{opened['event']} {opened['time']}"
        uri, artifacts = os.environ.get(SERVER), None
        if not uri:
            make_folder(self.folder)
            uri = f"sqlite:///{self.folder.absolute() / 'mlflow.db'}"
            artifacts = (self.folder.absolute() / "artifacts").as_uri()
        self._client = load_mlflow().MlflowClient(tracking_uri=uri)
        known = self._client.get_experiment_by_name(self.experiment)
        self._id = (
            known.experiment_id
            if known is not None
            else self._client.create_experiment(self.experiment, artifacts)
        )
        query, page = f"tags.log = '{self._log}'", None
        while page != "":
            found = self._client.search_runs(
                [self._id], query, max_results=PAGE, page_token=page or None
            )
            self._runs |= {run.data.tags["trial_id"]: run for run in found}
            page = found.token or ""

    def has(self, asked: Event) -> bool:
        """Whether the run of a trial has ended."""
        run = self._same(asked)
        return run is not None and run.info.status in ("FINISHED", "FAILED")

    def _same(self, asked: Event) -> Any:
        """The run of a trial; None if there is none, or one from before it was asked for again."""
        run = self._runs.get(asked["trial_id"])
        return run if run is not None and run.info.start_time == _ms(asked) else None

    def start(self, asked: Event) -> None:
        """Begin a run, or go on with it."""
        trial_id, client = asked["trial_id"], self._client
        if (run := self._same(asked)) is not None:
            told = client.get_metric_history(run.info.run_id, "validation_accuracy")
            self._last[trial_id] = max((metric.step for metric in told), default=0)
            return
        if trial_id in self._runs:
            client.delete_run(self._runs[trial_id].info.run_id)
        cell = f"{asked['method']}-{asked['model']}"
        tags = {"log": self._log, "trial_id": trial_id, "cell": cell, "origin": asked["origin"]}
        run = client.create_run(self._id, _ms(asked), tags, trial_id)
        params = [self._param(key, str(value)) for key, value in hyperparameters(asked).items()]
        client.log_batch(run.info.run_id, params=params)
        self._runs[trial_id], self._last[trial_id] = run, 0

    def log(self, epoch: Event) -> None:
        """Tell the figures of an epoch, unless they were told."""
        if epoch["epoch"] > self._last[epoch["trial_id"]]:
            self._tell(epoch, figures(epoch), epoch["epoch"])

    def end(self, ended: Event) -> None:
        """End a run."""
        tags = [self._tag("state", ended["state"]), self._tag("reason", ended["reason"])]
        self._tell(ended, {key: float(ended[key]) for key in FINAL}, ended["epochs"], tags)
        status = "FINISHED" if ended["state"] in SOUND else "FAILED"
        run = self._runs[ended["trial_id"]]
        self._client.set_terminated(run.info.run_id, status, _ms(ended))

    def _tell(self, event: Event, of: dict[str, float], step: int, tags: Any = ()) -> None:
        metrics = [self._metric(key, value, _ms(event), step) for key, value in of.items()]
        self._client.log_batch(self._runs[event["trial_id"]].info.run_id, metrics, tags=tags)

    def close(self) -> None:
        """Nothing: runs of trials under way go on when these do."""


def _ms(event: Event) -> int:
    return round(1000 * event["time"])
