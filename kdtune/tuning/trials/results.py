"""Results that the process of a trial reports to the driver, as one tagged union."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter

from kdtune.log.events import EpochMetrics
from kdtune.storage.array_cache import CacheProgress

_RAY_KEY = "trial_result"  # in Ray's dicts, to which Ray adds keys of its own


class Failure(StrEnum):
    """Kinds of failures of a trial after which its process continues with other trials."""

    DIVERGED = "diverged"
    CRASHED = "crashed"
    OUT_OF_MEMORY = "out_of_memory"
    DISK_FULL = "disk_full"


class ProcessStarted(BaseModel, frozen=True):
    """A process runs the trial; Ray knows its node by this id."""

    kind: Literal["process_started"] = "process_started"
    node_id: str
    pid: int


class CacheReported(BaseModel, frozen=True):
    """The trial builds, has built or waits for arrays that all trials share."""

    kind: Literal["cache_reported"] = "cache_reported"
    progress: CacheProgress


class EpochReported(BaseModel, frozen=True):
    """The trial finished an epoch, or resumed and repeats an earlier one."""

    kind: Literal["epoch_reported"] = "epoch_reported"
    metrics: EpochMetrics


class TrialFailed(BaseModel, frozen=True):
    """The last result of a trial that failed."""

    kind: Literal["trial_failed"] = "trial_failed"
    failure: Failure
    reason: str


TrialResult = ProcessStarted | CacheReported | EpochReported | TrialFailed
_TaggedResult = Annotated[TrialResult, Field(discriminator="kind")]
_RESULTS: TypeAdapter[TrialResult] = TypeAdapter(_TaggedResult)


def to_ray(result: TrialResult) -> dict[str, Any]:
    """Return a result for Ray, as JSON: Ray flattens nested dicts."""
    return {_RAY_KEY: result.model_dump_json()}


def from_ray(ray_result: dict[str, Any]) -> TrialResult:
    """Return the result in one of Ray's dicts."""
    return _RESULTS.validate_json(ray_result[_RAY_KEY])
