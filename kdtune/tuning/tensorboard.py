"""Every trial for TensorBoard, a run each: its figures by epoch, and its row among the HParams."""

import shutil
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from torch.utils.tensorboard import SummaryWriter

from kdtune.reports.tables import SOUND
from kdtune.results import Event
from kdtune.tuning.tracked import FINAL, HYPERPARAMETERS, figures, hyperparameters

METRICS = {
    "best_validation_accuracy": "best validation accuracy",
    "validation_accuracy": "last validation accuracy",
    **dict.fromkeys(FINAL, ""),
}
"""Columns of the HParams beside the settings: the last value of a figure, and its name there."""

FIRST = ("method", "model", "lr", "alpha", "beta")
"""Settings whose columns are shown from the beginning, which are five; others can be ticked."""

ENDED = "ended"
"""An empty file in the folder of a trial of which everything is written."""


class TensorBoard:
    """Writes a folder a trial, as `kdtune.tuning.tracked.Tracker` has it.

    Args:
        folder: for these folders.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._writers: dict[str, SummaryWriter] = {}

    def begin(self, opened: Event) -> None:
        """Nothing is to be got ready."""

    def has(self, asked: Event) -> bool:
        """Whether the trial's folder is complete."""
        return (self.folder / asked["trial_id"] / ENDED).exists()

    def start(self, asked: Event) -> None:
        """Write the trial's settings, in place of what an earlier driver wrote."""
        path = self.folder / asked["trial_id"]
        shutil.rmtree(path, ignore_errors=True)
        writer = self._writers[asked["trial_id"]] = SummaryWriter(path)
        started = plugin_data_pb2.SessionStartInfo(start_time_secs=asked["time"])
        for key, value in hyperparameters(asked).items():
            if isinstance(value, str):
                started.hparams[key].string_value = value
            elif isinstance(value, bool):
                started.hparams[key].bool_value = value
            elif isinstance(value, int | float):
                started.hparams[key].number_value = value
        # TensorBoard takes the columns of all runs from any one of them.
        _write(writer, metadata.EXPERIMENT_TAG, asked["time"], experiment=_experiment())
        _write(writer, metadata.SESSION_START_INFO_TAG, asked["time"], session_start_info=started)
        writer.flush()

    def log(self, epoch: Event) -> None:
        """Write the figures of an epoch."""
        writer = self._writers[epoch["trial_id"]]
        for key, value in figures(epoch).items():
            writer.add_scalar(key, value, epoch["epoch"], epoch["time"])
        writer.flush()

    def end(self, ended: Event) -> None:
        """Write how the trial ended: HParams know success and failure, the text says the rest."""
        writer, time = self._writers.pop(ended["trial_id"]), ended["time"]
        for key in FINAL:
            writer.add_scalar(key, ended[key], ended["epochs"], time)
        writer.add_text("end", f"{ended['state']}: {ended['reason']}", ended["epochs"], time)
        sound = ended["state"] in SOUND
        status = api_pb2.STATUS_SUCCESS if sound else api_pb2.STATUS_FAILURE
        info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time)
        _write(writer, metadata.SESSION_END_INFO_TAG, time, session_end_info=info)
        writer.close()
        (self.folder / ended["trial_id"] / ENDED).touch()

    def close(self) -> None:
        """Close the files of trials under way."""
        while self._writers:
            self._writers.popitem()[1].close()


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


def _write(writer: SummaryWriter, tag: str, time: float, **content: Any) -> None:
    """Write what the HParams plugin reads, which lies in the metadata of an empty summary."""
    about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**content))
    value = Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)
    assert writer.file_writer is not None
    writer.file_writer.add_summary(Summary(value=[value]), walltime=time)
