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

from kdtune.log.events import SOUND, Event
from kdtune.trackers.tracker import ENDED, FINAL, HYPERPARAMETERS, figures, hyperparameters

METRICS = {
    "best_validation_accuracy": "best validation accuracy",
    "validation_accuracy": "last validation accuracy",
    **dict.fromkeys(FINAL, ""),
}
"""Columns of the HParams beside the settings: the last value of a figure, and its name there."""

FIRST = ("method", "model", "lr", "alpha", "beta")
"""Settings whose columns are shown from the beginning, which are five; others can be ticked."""


class _Events:
    """A trial's file of events, closed between any two of them.

    TensorBoard's own writer has a thread and an open file for each trial: with a thousand trials
    at work the driver would wait for one of a thousand threads after every epoch.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True)
        self.path = folder / f"events.out.tfevents.{time.time_ns()}"
        self._write(Entry(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, summaries: Iterable[Summary], seconds: float, step: int = 0) -> None:
        """Write summaries of a time, in seconds since 1970, as one event."""
        whole = Summary(value=[value for summary in summaries for value in summary.value])
        self._write(Entry(wall_time=seconds, step=step, summary=whole))

    def _write(self, entry: Entry) -> None:
        with open(self.path, "ab") as file:
            RecordWriter(file).write(entry.SerializeToString())


class TensorBoard:
    """Writes a folder a trial, as `kdtune.trackers.tracker.Tracker` has it.

    Args:
        folder: for these folders.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: dict[str, _Events] = {}

    def begin(self, opened: Event) -> None:
        """Nothing is to be got ready."""

    def has(self, asked: Event) -> bool:
        """Whether the trial's folder is complete."""
        return (self.folder / asked["trial_id"] / ENDED).exists()

    def start(self, asked: Event) -> None:
        """Write the trial's settings, in place of what an earlier driver wrote."""
        path = self.folder / asked["trial_id"]
        shutil.rmtree(path, ignore_errors=True)
        events = self._files[asked["trial_id"]] = _Events(path)
        started = plugin_data_pb2.SessionStartInfo(start_time_secs=asked["time"])
        for key, value in hyperparameters(asked).items():
            if isinstance(value, str):
                started.hparams[key].string_value = value
            elif isinstance(value, bool):
                started.hparams[key].bool_value = value
            elif isinstance(value, int | float):
                started.hparams[key].number_value = value
        # TensorBoard takes the columns of all runs from any one of them.
        columns = _hparams(metadata.EXPERIMENT_TAG, experiment=_experiment())
        row = _hparams(metadata.SESSION_START_INFO_TAG, session_start_info=started)
        events.add([columns, row], asked["time"])

    def log(self, epoch: Event) -> None:
        """Write the figures of an epoch."""
        scalars = [scalar(key, value) for key, value in figures(epoch).items()]
        self._files[epoch["trial_id"]].add(scalars, epoch["time"], epoch["epoch"])

    def end(self, ended: Event) -> None:
        """Write how the trial ended: HParams know success and failure, the text says the rest."""
        events, seconds = self._files.pop(ended["trial_id"]), ended["time"]
        words = text("end", f"{ended['state']}: {ended['reason']}")
        last = [*(scalar(key, ended[key]) for key in FINAL), words]
        events.add(last, seconds, ended["epochs"])
        sound = ended["state"] in SOUND
        status = api_pb2.STATUS_SUCCESS if sound else api_pb2.STATUS_FAILURE
        info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=seconds)
        events.add([_hparams(metadata.SESSION_END_INFO_TAG, session_end_info=info)], seconds)
        (self.folder / ended["trial_id"] / ENDED).touch()

    def close(self) -> None:
        """Nothing is open."""


def _experiment() -> api_pb2.Experiment:
    """The columns, which are the same for all trials."""
    return api_pb2.Experiment(
        hparam_infos=[
            api_pb2.HParamInfo(name=name, differs=name in FIRST) for name in HYPERPARAMETERS
        ],
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=name)
            for tag, name in METRICS.items()
        ],
    )


def _hparams(tag: str, **content: Any) -> Summary:
    """What the HParams plugin reads, which lies in the metadata of an empty summary."""
    about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**content))
    return Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)])
