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
from kdtune.plugins import PLUGINS, Plugin
from kdtune.storage.array_cache import CacheProgress
from kdtune.tuning.cluster.pack_plugins import pack_plugins
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.trials.shared_inputs import SharedInputs, build_first_epoch
from kdtune.tuning.trials.trainable import TargetRequests, open_shared_inputs


def warm_cache(
    shared: SharedInputs, slots: Slots, say: Callable[[str], None]
) -> list[CacheProgress]:
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
    for line in shared.cache_plan.lines:
        say(line)
    if slots.has_node(ray.get_runtime_context().get_node_id()):
        return shared.warm_cache(say)
    allocation = slots.smallest_allocation(shared.sweep.models[0])
    if allocation is None:
        raise RunError("No node has room for a trial any more.")
    on_node = NodeAffinitySchedulingStrategy(allocation.node, soft=False)
    task = _build_on_node.options(
        num_cpus=allocation.cpus, num_gpus=allocation.gpus, scheduling_strategy=on_node
    ).remote(pack_plugins(), shared.sweep, shared.target_requests, shared.representative_runs)
    try:
        prepared, problem = ray.get(task)
    except ray.exceptions.RayError as error:
        raise RunError(f"The first views could not be built: {last_line(error)}") from error
    if problem is not None:
        raise UserError(problem)
    for progress in prepared:
        say(f"on a node of the cluster: {progress.describe()}")
    return list(prepared)


@ray.remote(max_retries=1)
def _build_on_node(
    plugins: Sequence[Plugin],
    sweep: SweepConfig,
    target_requests: TargetRequests,
    runs: list[TrainConfig],
) -> Any:
    try:
        PLUGINS.sync(plugins)
        decoded, teacher_targets = open_shared_inputs(sweep, target_requests)
        return build_first_epoch(decoded, teacher_targets, runs, lambda progress: None), None
    except UserError as error:  # which Ray would wrap
        return [], str(error)
