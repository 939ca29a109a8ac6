"""Events of a sweep's log: one frozen model per kind."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter

from kdtune.config.field_types import Metric
from kdtune.config.names import FILE_NAME_PATTERN
from kdtune.log.image_scores import chance_accuracy
from kdtune.storage.array_cache import CacheProgress

Cell = tuple[str, str]  # (method, model): has its own study, rungs and share of the budget.
# In a sweep with several recipes the model is one under a recipe, as in ResNet18@strong.


class TrialState(StrEnum):
    RUNNING = "running"
    FINISHED = "finished"  # trained all epochs
    STOPPED = "stopped"  # by early stopping or by the budget
    DIVERGED = "diverged"  # its loss was not finite
    CRASHED = "crashed"


SUCCESSFUL_STATES = (TrialState.FINISHED, TrialState.STOPPED)  # the accuracy counts
FAILED_STATES = (TrialState.DIVERGED, TrialState.CRASHED)
ENDED_STATES = (*SUCCESSFUL_STATES, *FAILED_STATES)


class RestartCause(StrEnum):
    PROCESS_DIED = "process_died"
    STALLED = "stalled"  # it made no progress
    DEVICE_MEMORY = "device_memory"  # its device had too little memory
    TRIAL_ERROR = "trial_error"
    NODE_LOST = "node_lost"
    MISPLACED = "misplaced"  # Ray started it on a node that gets no trials


FileName = Annotated[str, StringConstraints(pattern=FILE_NAME_PATTERN)]
# The file stem of a model's name fits, too.
ModelName = Annotated[str, StringConstraints(pattern=r"^[\w][\w.:@-]*$")]


class _Record(BaseModel):  # unknown fields, as of a later version, are ignored
    model_config = ConfigDict(frozen=True, allow_inf_nan=False, protected_namespaces=())


class Event(_Record):
    kind: str
    time: float = 0.0  # seconds since 1970
    session_seconds: float = 0.0  # since the driver opened the log, by a monotonic clock


class _CellRecord(_Record):
    method: FileName
    model: ModelName

    @property
    def cell(self) -> Cell:
        return self.method, self.model

    @property
    def cell_name(self) -> str:
        return "-".join(self.cell)


class TrialEvent(_CellRecord, Event):
    trial_id: FileName

    @property
    def identity(self) -> dict[str, Any]:
        """Trial and cell, as arguments of another event about the trial."""
        return {"trial_id": self.trial_id, "method": self.method, "model": self.model}


class UnreadableImage(_Record):
    split: str
    file: str
    reason: str


class DataSummary(_Record):
    classes: tuple[str, ...]
    train_images: int
    validation_images: int
    test_images: int
    fingerprint: str
    test_fingerprint: str
    skipped_images: tuple[UnreadableImage, ...] = ()
    train_class_counts: tuple[int, ...] = ()  # images by class; none in logs of earlier versions
    validation_class_counts: tuple[int, ...] = ()

    def describe_counts(self) -> str:
        """Return the numbers of training, validation and test images, as ``800+100+100``."""
        return f"{self.train_images}+{self.validation_images}+{self.test_images}"


class TeacherSummary(_Record):
    path: str
    sha256: str
    model: str
    image_size: int | None = None
    metric: Metric = "accuracy"  # of its accuracies
    train_accuracy: float | None = None  # between 0 and 1
    validation_accuracy: float | None = None
    test_accuracy: float | None = None

    def describe(self) -> str:
        """Return the model and its accuracies, as far as they are known."""
        accuracies = {"validation": self.validation_accuracy, "test": self.test_accuracy}
        known = [f"{k} {100 * v:.2f} %" for k, v in accuracies.items() if v is not None]
        return ", ".join([self.model, *known])


class SpaceRecord(_Record):
    path: str
    function: bool  # then only its file is recorded
    distributions: dict[str, dict[str, Any]]
    constants: dict[str, Any]
    start: tuple[dict[str, Any], ...]


class PluginRecord(_Record):
    name: str
    sha256: str
    installed: bool
    provides: tuple[str, ...]


class CachePlan(_Record):
    methods: tuple[str, ...]  # with cached teacher targets; the teacher runs live for the others
    augment_views: int  # that epochs cycle through; 0: new ones in every epoch
    num_bytes: int
    prepared: tuple[CacheProgress, ...] = ()  # built or opened before the first trial


class LogOpening(Event):
    config: dict[str, Any]  # a complete `SweepConfig`
    data: DataSummary
    teacher: TeacherSummary | None
    environment: dict[str, str | int | None]
    plugins: tuple[PluginRecord, ...] = ()
    cache: CachePlan

    @property
    def metric(self) -> Metric:
        """The accuracy that every "accuracy" of trials, runs and tests is."""
        metric: Metric = self.config.get("metric", "accuracy")
        return metric

    @property
    def chance(self) -> float:
        """The share of 1 that answers of one class reach; the score of a diverged trial."""
        data = self.data
        return chance_accuracy(data.validation_class_counts, len(data.classes), self.metric)


class SweepOpening(LogOpening):
    spaces: dict[str, SpaceRecord]


class SweepStarted(SweepOpening):
    kind: Literal["sweep_started"] = "sweep_started"


class SweepResumed(SweepOpening):
    kind: Literal["sweep_resumed"] = "sweep_resumed"


class Candidate(_CellRecord):
    trial_id: FileName  # of the search


class ConfirmStarted(LogOpening):
    kind: Literal["confirm_started"] = "confirm_started"  # or it was extended
    candidates: tuple[Candidate, ...]
    seeds: int  # number of fresh seeds for each candidate
    top: int  # maximum of candidates per cell
    groups_sha256: str | None = None  # hash of the groups of the test images, if there are any


class Observation(_Record):
    trial_id: str  # id, after the earlier sweep's folder
    params: dict[str, Any]
    distributions: dict[str, dict[str, Any]]
    state: TrialState
    best_validation_accuracies: tuple[float, ...]  # best so far, after each epoch


class WarmStart(_CellRecord, Event):
    kind: Literal["warm_start"] = "warm_start"
    source: str
    observations: tuple[Observation, ...]  # of an earlier sweep
    start: tuple[dict[str, Any], ...]  # points to start from
    reason: str


class EarlierCell(_CellRecord, Event):
    kind: Literal["earlier_cell"] = "earlier_cell"  # of another sweep: a prior for all cells
    source: str
    observations: tuple[Observation, ...]
    reason: str


class CacheUpdated(Event):
    kind: Literal["cache_updated"] = "cache_updated"
    trial_id: FileName
    progress: CacheProgress


class TrialProposed(TrialEvent):
    kind: Literal["trial_proposed"] = "trial_proposed"
    number: int  # in its cell, from 0; for a run the number of its seed, from 1
    origin: Literal["start", "sampler", "repeat", "confirm"]  # "start": a known point
    params: dict[str, Any]  # values that are searched
    distributions: dict[str, dict[str, Any]]  # of the params, as Optuna serializes them
    config: dict[str, Any]  # complete settings
    candidate: FileName | None = None  # earlier trial with the same settings and another seed
    loss_scales: dict[str, float] = {}  # by weight: its term over the classification loss at 1

    @property
    def is_repeat(self) -> bool:
        """True for a further seed of the settings of an earlier trial of the search."""
        return self.origin == "repeat"

    @property
    def first_trial_id(self) -> str:
        """The first trial of the search with these settings: for a repeat, its candidate."""
        return self.candidate if self.is_repeat and self.candidate else self.trial_id

    def describe_origin(self) -> str:
        """Return where its settings come from, with the candidate of a repeat."""
        return f"repeat of {self.candidate}" if self.is_repeat else self.origin

    def describe(self) -> str:
        """Return its id, with the candidate of a repeat."""
        return f"{self.trial_id} ({self.describe_origin()})" if self.is_repeat else self.trial_id


class EpochMetrics(_Record):
    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    validation_balanced_accuracy: float | None = None  # this and the next: not in earlier logs
    validation_top_class_share: float | None = None  # of the images, with the most frequent answer
    best_validation_accuracy: float  # by the metric of the sweep
    losses: dict[str, float | None]
    seconds: float
    device: str
    threads: int

    def as_row(self) -> dict[str, Any]:
        """Return the metrics by name; parts of the loss are named ``loss_<part>``."""
        row = {name: getattr(self, name) for name in EpochMetrics.model_fields if name != "losses"}
        return row | {f"loss_{part}": value for part, value in self.losses.items()}


class EpochFinished(TrialEvent, EpochMetrics):
    kind: Literal["epoch_finished"] = "epoch_finished"


class TrialRestarted(TrialEvent):
    kind: Literal["trial_restarted"] = "trial_restarted"  # in another process
    cause: RestartCause
    reason: str


class TrialEnded(TrialEvent):
    kind: Literal["trial_ended"] = "trial_ended"
    state: TrialState
    reason: str
    epochs: int
    best_validation_accuracy: float | None

    @property
    def is_successful(self) -> bool:
        return self.state in SUCCESSFUL_STATES


class TrialEstimate(_Record):
    trial_id: FileName  # the first trial with its settings
    mean: float  # expected validation accuracy of a new run, share of 1
    sd: float  # of that expectation


class CellModelled(_CellRecord, Event):
    kind: Literal["cell_modelled"] = "cell_modelled"  # after the last trial of a search
    noise_sd: float  # of runs that differ in the seed alone
    left_to_gain: float  # from the best settings to the best of the space; at most, with 90 %
    search_luck: float  # standard deviation of what repeated searches find
    estimates: tuple[TrialEstimate, ...]  # of finished trials, the best first


class TrialsAdded(Event):
    kind: Literal["trials_added"] = "trials_added"  # before any test image is read
    cells: tuple[Cell, ...]
    trials: int  # of each of these cells from now on
    reason: str


class SpaceExhausted(_CellRecord, Event):
    kind: Literal["space_exhausted"] = "space_exhausted"
    reason: str


class Completed(Event):
    kind: Literal["completed"] = "completed"  # all trials have ended, and the tables are written


class WeightsMissing(TrialEvent):
    kind: Literal["weights_missing"] = "weights_missing"  # the run must run again


class StudentProfiled(Event):
    kind: Literal["student_profiled"] = "student_profiled"  # see `kdtune.models.costs`
    model: ModelName
    parameters: int
    macs: int
    latency_ms: float
    latency_device: str


class CandidateChosen(_CellRecord, Event):
    kind: Literal["candidate_chosen"] = "candidate_chosen"
    candidate: FileName


class SeedsAdded(Event):
    kind: Literal["seeds_added"] = "seeds_added"  # after a look at the test images
    cells: tuple[Cell, ...]
    seeds: int  # of each of these cells from now on
    reason: str


class RunTested(TrialEvent):
    kind: Literal["run_tested"] = "run_tested"  # a run of a chosen candidate
    test_accuracy: float  # by the metric of the sweep
    test_balanced_accuracy: float | None = None  # not in earlier logs
    test_images: int


EVENTS: TypeAdapter[Event] = TypeAdapter(
    Annotated[
        SweepStarted | SweepResumed | ConfirmStarted | WarmStart | EarlierCell | CacheUpdated
        | TrialProposed | EpochFinished | TrialRestarted | TrialEnded | CellModelled
        | TrialsAdded | SpaceExhausted | Completed | WeightsMissing | StudentProfiled
        | CandidateChosen | SeedsAdded | RunTested,
        Field(discriminator="kind"),
    ]
)  # fmt: skip
