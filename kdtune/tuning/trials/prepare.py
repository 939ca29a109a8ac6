"""Where a sweep's first views are built: here, if trials run here, or on a node where they do.

Further nodes build theirs when their first trial asks for them, while the others work.
"""

from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.errors import RunError, UserError, last_line
from kdtune.log.events import Event
from kdtune.plugins import Plugin, have_only, loaded
from kdtune.storage.array_cache import describe
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.trials.shared_inputs import Shared, build_first
from kdtune.tuning.trials.trainable import Askers, open_shared


def prepare(shared: Shared, slots: Slots, say: Callable[[str], None]) -> list[Event]:
    """Build what the first epoch needs.

    Args:
        shared: what the trials have in common.
        slots: where they run.
        say: takes a line for a person about each view, and about what does not fit.

    Returns:
        What was built or found.

    Raises:
        UserError: images cannot be read, or something else about data and teacher is no good.
        RunError: the node that was to build is lost.
    """
    for line in shared.kept.lines:
        say(line)
    if slots.may_use(ray.get_runtime_context().get_node_id()):
        return shared.prepare(say)
    place = slots.place(shared.sweep.models[0])
    if place is None:
        raise RunError("No node has room for a trial any more.")
    there = NodeAffinitySchedulingStrategy(place.node, soft=False)
    task = _build.options(
        num_cpus=place.cpus, num_gpus=place.gpus, scheduling_strategy=there
    ).remote(loaded(), shared.sweep, shared.askers, shared.runs)
    try:
        events, trouble = ray.get(task)
    except ray.exceptions.RayError as error:
        raise RunError(f"The first views could not be built: {last_line(error)}") from error
    if trouble is not None:
        raise UserError(trouble)
    for event in events:
        say(f"on a node of the cluster: {describe(event)}")
    return list(events)


@ray.remote(max_retries=1)
def _build(
    plugins: Sequence[Plugin], sweep: SweepConfig, askers: Askers, runs: list[TrainConfig]
) -> Any:
    try:
        have_only(plugins)
        views, lesson = open_shared(sweep, askers)
        return build_first(views, lesson, runs, lambda event: None), None
    except UserError as error:  # which Ray would wrap
        return [], str(error)
