"""Events of a sweep's log: one frozen model per kind.

Unknown fields are ignored, so this version can read the log of a later one. The search and its
confirmation have a log each; in the second, a trial is a run of a ``candidate``, a trial of the
search, with its settings.
"""

import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter

from kdtune.config.train import FILE_NAME_PATTERN, file_stem
from kdtune.storage.array_cache import CacheProgress

Cell = tuple[str, str]
"""(method, model): has its own study, rungs and share of the budget."""


class TrialState(StrEnum):
    """State of a trial; `RUNNING` until it ends."""

    RUNNING = "running"
    FINISHED = "finished"  # trained all epochs
    STOPPED = "stopped"  # by early stopping or by the budget
    DIVERGED = "diverged"  # its loss was not finite
    CRASHED = "crashed"


SUCCESSFUL_STATES = (TrialState.FINISHED, TrialState.STOPPED)
"""States of trials whose accuracy counts."""

FAILED_STATES = (TrialState.DIVERGED, TrialState.CRASHED)

ENDED_STATES = (*SUCCESSFUL_STATES, *FAILED_STATES)


class RestartCause(StrEnum):
    """Cause of the restart of a trial in another process."""

    PROCESS_DIED = "process_died"
    STALLED = "stalled"  # it made no progress
    DEVICE_MEMORY = "device_memory"  # its device had too little memory
    TRIAL_ERROR = "trial_error"
    NODE_LOST = "node_lost"
    MISPLACED = "misplaced"  # Ray started it on a node that gets no trials


def _check_model_name(name: str) -> str:
    if not re.match(FILE_NAME_PATTERN, file_stem(name)):
        raise ValueError("file names are made from the name of a model")
    return name


FileName = Annotated[str, StringConstraints(pattern=FILE_NAME_PATTERN)]
ModelName = Annotated[str, AfterValidator(_check_model_name)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False, protected_namespaces=())


class Event(_Record):
    """Base of all events.

    Attributes:
        kind: identifies the class.
        time: seconds since 1970.
        session_seconds: seconds since the driver opened the log, by a monotonic clock.
    """

    kind: str
    time: float = 0.0
    session_seconds: float = 0.0


class _CellRecord(_Record):
    method: FileName
    model: ModelName

    @property
    def cell(self) -> Cell:
        """The cell, as a tuple."""
        return self.method, self.model

    @property
    def cell_name(self) -> str:
        """The name of the cell, such as ``at-ResNet18``."""
        return f"{self.method}-{self.model}"


class _CellEvent(_CellRecord, Event):
    pass


class _TrialEvent(_CellEvent):
    trial_id: FileName

    @property
    def identity(self) -> dict[str, Any]:
        """Trial and cell, as keyword arguments of another event about the trial."""
        return {"trial_id": self.trial_id, "method": self.method, "model": self.model}


class UnreadableImage(_Record):
    """A skipped image that cannot be read."""

    split: str
    file: str
    reason: str


class DataSummary(_Record):
    """The images of a sweep; see `kdtune.data.splits.ImageData`."""

    classes: tuple[str, ...]
    train_images: int
    validation_images: int
    test_images: int
    fingerprint: str
    test_fingerprint: str
    skipped_images: tuple[UnreadableImage, ...] = ()

    def describe_counts(self) -> str:
        """Return the numbers of training, validation and test images, as ``800+100+100``."""
        return f"{self.train_images}+{self.validation_images}+{self.test_images}"


class TeacherSummary(_Record):
    """A teacher's file; accuracies are between 0 and 1, None if not measured."""

    path: str
    sha256: str
    model: str
    image_size: int | None = None
    validation_accuracy: float | None = None
    test_accuracy: float | None = None


class SpaceRecord(_Record):
    """A search space at the start of a sweep; for a function only its file is recorded."""

    path: str
    function: bool
    distributions: dict[str, dict[str, Any]]
    constants: dict[str, Any]
    start: tuple[dict[str, Any], ...]


class PluginRecord(_Record):
    """A plug-in that provides methods, networks or data of a sweep."""

    name: str
    sha256: str
    installed: bool
    provides: tuple[str, ...]


class CacheRecord(_Record):
    """Arrays in the cache for all trials of a sweep.

    Attributes:
        methods: methods with cached teacher targets; the teacher runs live for the others.
        augment_views: augmented views that epochs cycle through; 0: new ones in every epoch.
        num_bytes: size of all arrays.
        prepared: arrays that were built or opened before the first trial.
    """

    methods: tuple[str, ...]
    augment_views: int
    num_bytes: int
    prepared: tuple[CacheProgress, ...] = ()


class LogOpening(Event):
    """Base of events that open a log; ``config`` is a complete `SweepConfig`."""

    config: dict[str, Any]
    data: DataSummary
    teacher: TeacherSummary | None
    environment: dict[str, str | int | None]
    plugins: tuple[PluginRecord, ...] = ()
    cache: CacheRecord


class SweepOpening(LogOpening):
    """Base of events that open the log of a search."""

    spaces: dict[str, SpaceRecord]


class SweepStarted(SweepOpening):
    """The first event of a sweep's log."""

    kind: Literal["sweep_started"] = "sweep_started"


class SweepResumed(SweepOpening):
    """Another driver continues the sweep."""

    kind: Literal["sweep_resumed"] = "sweep_resumed"


class Candidate(_CellRecord):
    """A trial of the search that is confirmed."""

    trial_id: FileName


class ConfirmStarted(LogOpening):
    """A confirmation started or was extended.

    Attributes:
        candidates: new candidates.
        seeds: number of fresh seeds for each candidate.
        top: maximum of candidates per cell.
        groups_sha256: hash of the groups of the test images, if the data have them.
    """

    kind: Literal["confirm_started"] = "confirm_started"
    candidates: tuple[Candidate, ...]
    seeds: int
    top: int
    groups_sha256: str | None = None


class Observation(_Record):
    """A trial of an earlier sweep that informs the sampler of this one.

    Attributes:
        trial_id: id, after the earlier sweep's folder.
        params: values that were searched.
        distributions: their distributions, as Optuna serializes them.
        state: how it ended.
        best_validation_accuracies: best so far, after each epoch.
    """

    trial_id: str
    params: dict[str, Any]
    distributions: dict[str, dict[str, Any]]
    state: TrialState
    best_validation_accuracies: tuple[float, ...]


class WarmStart(_CellEvent):
    """Observations of an earlier sweep for a cell, or points to start from."""

    kind: Literal["warm_start"] = "warm_start"
    source: str
    observations: tuple[Observation, ...]
    start: tuple[dict[str, Any], ...]
    reason: str


class CacheUpdated(Event):
    """A trial builds, has built or waits for shared arrays."""

    kind: Literal["cache_updated"] = "cache_updated"
    trial_id: FileName
    progress: CacheProgress


class TrialProposed(_TrialEvent):
    """A trial, or a run of a candidate, was proposed.

    Attributes:
        number: number in its cell, from 0; for a run the number of its seed, from 1.
        origin: ``start`` (a known point), ``sampler`` or ``confirm``.
        params: values that are searched.
        distributions: their distributions, as Optuna serializes them.
        config: complete settings.
        candidate: trial that a run repeats; None in a search.
    """

    kind: Literal["trial_proposed"] = "trial_proposed"
    number: int
    origin: Literal["start", "sampler", "confirm"]
    params: dict[str, Any]
    distributions: dict[str, dict[str, Any]]
    config: dict[str, Any]
    candidate: FileName | None = None


class EpochMetrics(_Record):
    """Metrics of one epoch; see `kdtune.training.loop.EpochResult`."""

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    best_validation_accuracy: float
    losses: dict[str, float | None]
    seconds: float
    device: str
    threads: int

    def as_row(self) -> dict[str, Any]:
        """Return the metrics by name; parts of the loss are named ``loss_<part>``."""
        row = {name: getattr(self, name) for name in EpochMetrics.model_fields if name != "losses"}
        return row | {f"loss_{part}": value for part, value in self.losses.items()}


class EpochFinished(_TrialEvent, EpochMetrics):
    """A trial finished an epoch."""

    kind: Literal["epoch_finished"] = "epoch_finished"


class TrialRestarted(_TrialEvent):
    """A trial restarts in another process, from its last checkpoint."""

    kind: Literal["trial_restarted"] = "trial_restarted"
    cause: RestartCause
    reason: str


class TrialEnded(_TrialEvent):
    """A trial ended."""

    kind: Literal["trial_ended"] = "trial_ended"
    state: TrialState
    reason: str
    epochs: int
    best_validation_accuracy: float | None


class SpaceExhausted(_CellEvent):
    """The search space of a cell has no further point."""

    kind: Literal["space_exhausted"] = "space_exhausted"
    reason: str


class Completed(Event):
    """All trials have ended, and the tables are written."""

    kind: Literal["completed"] = "completed"


class WeightsMissing(_TrialEvent):
    """The weights of a run are lost, so it must run again."""

    kind: Literal["weights_missing"] = "weights_missing"


class StudentProfiled(Event):
    """Costs of a student; see `kdtune.models.costs`."""

    kind: Literal["student_profiled"] = "student_profiled"
    model: ModelName
    parameters: int
    macs: int
    latency_ms: float
    latency_device: str


class CandidateChosen(_CellEvent):
    """The candidate of a cell with the best mean validation accuracy was chosen."""

    kind: Literal["candidate_chosen"] = "candidate_chosen"
    candidate: FileName


class RunTested(_TrialEvent):
    """A run of a chosen candidate classified the test images."""

    kind: Literal["run_tested"] = "run_tested"
    test_accuracy: float
    test_images: int


EVENTS: TypeAdapter[Event] = TypeAdapter(
    Annotated[
        SweepStarted | SweepResumed | ConfirmStarted | WarmStart | CacheUpdated | TrialProposed
        | EpochFinished | TrialRestarted | TrialEnded | SpaceExhausted | Completed | WeightsMissing
        | StudentProfiled | CandidateChosen | RunTested,
        Field(discriminator="kind"),
    ]
)  # fmt: skip
"""Reads any event from JSON."""
