"""TensorBoard tracker: one run per trial, and one row per trial in the HParams tab."""

import shutil
import time
from itertools import starmap
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event as Entry
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.api_pb2 import Experiment, HParamInfo, MetricInfo, MetricName
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from kdtune.log.events import EpochFinished, TrialEnded, TrialEvent, TrialProposed
from kdtune.trackers import tracker

METRIC_TAGS = {
    "best_validation_accuracy": "best validation accuracy",
    "validation_accuracy": "last validation accuracy",
    "epochs": "",
    "device_seconds": "",
}
DEFAULT_COLUMNS = ("method", "model", "lr", "alpha", "beta")  # TensorBoard shows five at first


class TensorBoardTracker(tracker.Tracker):
    """Writes event files; TensorBoard's own writer has a thread and an open file per trial."""

    def __init__(self, folder: Path):
        self.folder, self._event_files = folder, dict[str, Path]()

    def is_trial_logged(self, proposed: TrialProposed) -> bool:
        return (self.folder / proposed.trial_id / tracker.END_MARKER).exists()

    def log_trial_start(self, proposed: TrialProposed) -> None:
        path = self.folder / proposed.trial_id / f"events.out.tfevents.{time.time_ns()}"
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir(parents=True)
        self._event_files[proposed.trial_id] = path
        _append(path, Entry(wall_time=time.time(), file_version="brain.Event:2"))
        names, tags = tracker.HYPERPARAMETERS, METRIC_TAGS.items()
        parameters = [HParamInfo(name=name, differs=name in DEFAULT_COLUMNS) for name in names]
        metrics = [MetricInfo(name=MetricName(tag=t), display_name=name) for t, name in tags]
        columns = Experiment(hparam_infos=parameters, metric_infos=metrics)
        settings = tracker.select_hyperparameters(proposed).items()
        values = {key: value for key, value in settings if isinstance(value, str | int | float)}
        row = hparams_pb(values, trial_id=proposed.trial_id, start_time_secs=proposed.time)
        # TensorBoard takes the columns of all runs from any one of them.
        plugin_data = HParamsPluginData(experiment=columns)
        origin = text_pb("origin", proposed.describe_origin())
        head = _hparams_summary(metadata.EXPERIMENT_TAG, plugin_data)
        self._write(proposed, 0, head, row, origin)

    def log_epoch(self, epoch: EpochFinished) -> None:
        self._write(epoch, epoch.epoch, *starmap(_scalar, tracker.select_metrics(epoch).items()))

    def log_trial_end(self, ended: TrialEnded, device_seconds: float) -> None:
        epochs, seconds = ended.epochs, _scalar("device_seconds", device_seconds)
        text = text_pb("end", f"{ended.state}: {ended.reason}")  # HParams has fewer states
        self._write(ended, epochs, _scalar("epochs", epochs), seconds, text)
        status = api_pb2.STATUS_SUCCESS if ended.is_successful else api_pb2.STATUS_FAILURE
        end = SessionEndInfo(status=status, end_time_secs=ended.time)
        plugin_data = HParamsPluginData(session_end_info=end)
        self._write(ended, 0, _hparams_summary(metadata.SESSION_END_INFO_TAG, plugin_data))
        del self._event_files[ended.trial_id]
        (self.folder / ended.trial_id / tracker.END_MARKER).touch()

    def _write(self, event: TrialEvent, step: int, *summaries: Summary) -> None:
        values = [value for summary in summaries for value in summary.value]
        entry = Entry(wall_time=event.time, step=step, summary=Summary(value=values))
        _append(self._event_files[event.trial_id], entry)


def _append(path: Path, entry: Entry) -> None:
    with open(path, "ab") as file:
        RecordWriter(file).write(entry.SerializeToString())


def _scalar(tag: str, value: float) -> Summary:
    return Summary(value=[Summary.Value(tag=tag, simple_value=value)])  # as torch's SummaryWriter


def _hparams_summary(tag: str, plugin_data: HParamsPluginData) -> Summary:
    summary_metadata = metadata.create_summary_metadata(plugin_data)
    value = Summary.Value(tag=tag, metadata=summary_metadata, tensor=metadata.NULL_TENSOR)
    return Summary(value=[value])
