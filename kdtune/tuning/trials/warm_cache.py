"""Building of what the first epoch of a sweep needs, before any trial starts."""

from collections.abc import Callable, Sequence

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdtune.config.train import TrainConfig
from kdtune.errors import RunError, UserError, last_line
from kdtune.plugins import PLUGINS, Plugin
from kdtune.storage.array_cache import CacheProgress
from kdtune.tuning.cluster.pack_plugins import pack_plugins
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.trials.shared_inputs import SharedInputs, build_first_epoch
from kdtune.tuning.trials.trainable import ProcessMemory, TargetRequests


def warm_cache(
    shared: SharedInputs, slots: Slots, say: Callable[[str], None]
) -> list[CacheProgress]:
    """Build what the first epoch needs; return the arrays that were built or found.

    This machine builds, or a node if no trials run here. The other nodes build what their first
    trial needs.

    Args:
        shared: inputs of all trials.
        slots: give the nodes.
        say: takes a line about each array, and about what does not fit.

    Raises:
        UserError: images cannot be read, or data or teacher are unusable.
        RunError: the node that was to build is lost.
    """
    for line in shared.cache_plan_lines:
        say(line)
    if slots.has_node(ray.get_runtime_context().get_node_id()):
        return shared.warm_cache(say)
    allocation = slots.smallest_allocation(shared.sweep.models[0])
    if allocation is None:
        raise RunError("No node has room for a trial any more.")
    task = ray.remote(
        max_retries=1,
        num_cpus=allocation.cpus,
        num_gpus=allocation.gpus,
        scheduling_strategy=NodeAffinitySchedulingStrategy(allocation.node, soft=False),
    )(_build_on_node)
    arguments = pack_plugins(), shared.target_requests, shared.representative_runs
    prepared: list[CacheProgress]
    try:
        prepared, problem = ray.get(task.remote(*arguments))
    except ray.exceptions.RayError as error:
        raise RunError(f"The first views could not be built: {last_line(error)}") from error
    if problem is not None:
        raise UserError(problem)
    for progress in prepared:
        say(f"on a node of the cluster: {progress.describe()}")
    return prepared


def _build_on_node(
    plugins: Sequence[Plugin], target_requests: TargetRequests, runs: list[TrainConfig]
) -> tuple[list[CacheProgress], str | None]:
    """Return the arrays that were built or found, or a problem for the user."""
    try:
        PLUGINS.sync(plugins)
        return build_first_epoch(ProcessMemory(target_requests), runs, lambda _: None), None
    except UserError as error:  # Ray would wrap it
        return [], str(error)
