"""Every trial for TensorBoard, a run each: its figures by epoch, and its row among the HParams."""

import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event as Entry
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import scalar, text

from kdtune.log.events import (
    SUCCESSFUL_STATES,
    EpochFinished,
    LogOpening,
    TrialEnded,
    TrialProposed,
)
from kdtune.trackers.tracker import (
    COMPLETE_MARKER,
    FINAL_METRICS,
    HYPERPARAMETERS,
    select_hyperparameters,
    select_metrics,
)

METRIC_COLUMNS = {
    "best_validation_accuracy": "best validation accuracy",
    "validation_accuracy": "last validation accuracy",
    **dict.fromkeys(FINAL_METRICS, ""),
}
"""Columns of the HParams beside the settings: the last value of a figure, and its name there."""

DEFAULT_COLUMNS = ("method", "model", "lr", "alpha", "beta")
"""Settings whose columns are shown from the beginning, which are five; others can be ticked."""


class _EventFile:
    """A trial's file of events, closed between any two of them.

    TensorBoard's own writer has a thread and an open file for each trial: with a thousand trials
    at work the driver would wait for one of a thousand threads after every epoch.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True)
        self.path = folder / f"events.out.tfevents.{time.time_ns()}"
        self._append(Entry(wall_time=time.time(), file_version="brain.Event:2"))

    def write_summaries(
        self, summaries: Iterable[Summary], wall_time: float, step: int = 0
    ) -> None:
        """Write summaries of a time, in seconds since 1970, as one event."""
        merged = Summary(value=[value for summary in summaries for value in summary.value])
        self._append(Entry(wall_time=wall_time, step=step, summary=merged))

    def _append(self, entry: Entry) -> None:
        with open(self.path, "ab") as file:
            RecordWriter(file).write(entry.SerializeToString())


class TensorBoardTracker:
    """Writes a folder a trial, as `kdtune.trackers.tracker.Tracker` has it.

    Args:
        folder: for these folders.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._event_files: dict[str, _EventFile] = {}

    def setup(self, opening: LogOpening) -> None:
        """Nothing is to be got ready."""

    def is_trial_logged(self, proposed: TrialProposed) -> bool:
        """Whether the trial's folder is complete."""
        return (self.folder / proposed.trial_id / COMPLETE_MARKER).exists()

    def log_trial_start(self, proposed: TrialProposed) -> None:
        """Write the trial's settings, in place of what an earlier driver wrote."""
        path = self.folder / proposed.trial_id
        shutil.rmtree(path, ignore_errors=True)
        events = self._event_files[proposed.trial_id] = _EventFile(path)
        session_start = plugin_data_pb2.SessionStartInfo(start_time_secs=proposed.time)
        for key, value in select_hyperparameters(proposed).items():
            if isinstance(value, str):
                session_start.hparams[key].string_value = value
            elif isinstance(value, bool):
                session_start.hparams[key].bool_value = value
            elif isinstance(value, int | float):
                session_start.hparams[key].number_value = value
        # TensorBoard takes the columns of all runs from any one of them.
        columns = _hparams_summary(metadata.EXPERIMENT_TAG, experiment=_experiment_columns())
        row = _hparams_summary(metadata.SESSION_START_INFO_TAG, session_start_info=session_start)
        events.write_summaries([columns, row], proposed.time)

    def log_epoch(self, epoch: EpochFinished) -> None:
        """Write the figures of an epoch."""
        scalars = [scalar(key, value) for key, value in select_metrics(epoch).items()]
        self._event_files[epoch.trial_id].write_summaries(scalars, epoch.time, epoch.epoch)

    def log_trial_end(self, ended: TrialEnded, device_seconds: float) -> None:
        """Write how the trial ended: HParams know success and failure, the text says the rest."""
        events, wall_time = self._event_files.pop(ended.trial_id), ended.time
        end_text = text("end", f"{ended.state}: {ended.reason}")
        metrics = scalar("epochs", ended.epochs), scalar("device_seconds", device_seconds)
        summaries = [*metrics, end_text]
        events.write_summaries(summaries, wall_time, ended.epochs)
        is_successful = ended.state in SUCCESSFUL_STATES
        status = api_pb2.STATUS_SUCCESS if is_successful else api_pb2.STATUS_FAILURE
        info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=wall_time)
        events.write_summaries(
            [_hparams_summary(metadata.SESSION_END_INFO_TAG, session_end_info=info)], wall_time
        )
        (self.folder / ended.trial_id / COMPLETE_MARKER).touch()

    def close(self) -> None:
        """Nothing is open."""


def _experiment_columns() -> api_pb2.Experiment:
    """The columns, which are the same for all trials."""
    return api_pb2.Experiment(
        hparam_infos=[
            api_pb2.HParamInfo(name=name, differs=name in DEFAULT_COLUMNS)
            for name in HYPERPARAMETERS
        ],
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=name)
            for tag, name in METRIC_COLUMNS.items()
        ],
    )


def _hparams_summary(tag: str, **content: Any) -> Summary:
    """What the HParams plugin reads, which lies in the metadata of an empty summary."""
    summary_metadata = metadata.create_summary_metadata(
        plugin_data_pb2.HParamsPluginData(**content)
    )
    return Summary(
        value=[Summary.Value(tag=tag, metadata=summary_metadata, tensor=metadata.NULL_TENSOR)]
    )
