"""Plans of sweeps, from measurements on this machine and a simulation.

Rows for more slots than this machine has are for several nodes like it.
"""

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import psutil

from kdtune.config.sweep import SweepConfig
from kdtune.errors import UserError
from kdtune.log.events import WarmStart
from kdtune.log.folder import RESULTS_FOLDER
from kdtune.runtime.environment import describe_environment
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.cluster.session import LOCAL_ADDRESS, find_slots, ray_session, resolve_address
from kdtune.tuning.display.screen import Screen
from kdtune.tuning.driver.preflight import PreparedSweep, prepare_sweep
from kdtune.tuning.planning import driver_costs, simulation
from kdtune.tuning.planning.recorded_curves import RecordedCurves
from kdtune.tuning.planning.synthetic_curves import SyntheticCurves
from kdtune.tuning.planning.training_worker import TrialSizes
from kdtune.tuning.planning.trial_costs import measure_trial_costs
from kdtune.tuning.scheduling.search_policy import SearchPolicy
from kdtune.tuning.search.samplers import GRID_SAMPLER, describe_sampler
from kdtune.tuning.trials.trial_checkpoints import CHECKPOINTS_PER_TRIAL
from kdtune.units import format_duration

MAX_TOTAL_PROPOSAL_SECONDS = 20.0
"""Maximum time for the proposals of all simulations; beyond it a cheaper sampler makes them."""

CHEAPER_SAMPLERS = ((3_000, "tpe"), (math.inf, "random"))
"""Cheaper samplers, each with the maximum number of trials of all simulations together."""

STARTUP_TRIALS = 10
"""Ended trials of a cell that Optuna's samplers need before they learn from any."""

MAX_SIMULATED_EPOCHS, MIN_TRIALS_PER_SLOT = 60_000, 5
"""Larger sweeps are simulated in part, with the larger of these numbers of epochs and trials."""

TRAINING_BOUND_SHARE = 0.75
"""Share of the slots' time from which on training is what limits a sweep."""

EPOCH_TIME_SETTINGS = {"batch_size", "augment", "hint_layer"}
"""Settings that change how long an epoch takes."""

STALE_AFTER_SECONDS = 3600.0
"""Age at which the temporary folder of a killed plan is removed; a plan takes minutes."""

Plan = dict[str, Any]
"""Plain values: ``slots`` of this machine; ``seconds`` that measuring took; ``before``, seconds
until the first trial starts; ``rows``, see `_build_row`; ``notes``; ``costs``; ``environment``."""


def plan_sweep(
    config: Mapping[str, Any],
    slot_counts: Sequence[int] = (),
    curves_path: Path | None = None,
    show: str = "live",
) -> Plan:
    """Check a sweep as `run_sweep` does, then plan it.

    Args:
        config: settings of `SweepConfig`.
        slot_counts: numbers of slots to plan for, besides that of this machine.
        curves_path: recorded learning curves; None for synthetic ones.
        show: mode, as for `kdtune.tuning.sweep.run_sweep`.
    """
    screen = Screen(show)
    requested = SweepConfig.parse(config)
    if invalid_counts := [count for count in slot_counts if count < 1]:
        raise UserError(f"A sweep cannot have {invalid_counts[0]} slots.")
    require_local_address(requested)
    if requested.gpus_per_trial == "auto":
        raise UserError(
            "Only a sweep measures how many trials should share a GPU: give a plan a number as "
            "--gpus-per-trial, or leave it out."
        )
    prepared = prepare_sweep(requested, requested.spaces)
    curves: simulation.LearningCurves
    curves = SyntheticCurves(prepared.sweep.epochs, prepared.sweep.seed)
    if curves_path is not None:
        curves = RecordedCurves(curves_path, prepared.sweep.epochs, fallback=curves)
    with ray_session(requested.address, screen.show == "verbose", screen.warn):
        slots = find_slots(prepared.sweep, screen.warn)
        warm_starts = prepared.load_warm_start_events()
        return make_plan(prepared, warm_starts, slots, slot_counts, curves, screen.say)


def require_local_address(sweep: SweepConfig) -> None:
    """Raise a `UserError` if a sweep is for a cluster."""
    if resolve_address(sweep.address) != LOCAL_ADDRESS:
        raise UserError(
            "A plan is measured on this machine alone: leave --address out, and RAY_ADDRESS."
        )


def make_plan(
    prepared: PreparedSweep,
    warm_starts: Sequence[WarmStart],
    slots: Slots,
    slot_counts: Sequence[int],
    curves: simulation.LearningCurves,
    say: Callable[[str], None],
) -> Plan:
    """Measure and simulate a sweep in a Ray session.

    Args:
        prepared: the sweep.
        warm_starts: what it learns from earlier sweeps.
        slots: those of this machine.
        slot_counts: other numbers of slots.
        curves: learning curves of the trials.
        say: writes a line.
    """
    num_cells, local_slots = len(prepared.sweep.cells()), slots.count
    plural = "s" * (num_cells > 1)
    say(f"measuring {num_cells} cell{plural}, {local_slots} trials side by side: about a minute")
    started_at = time.perf_counter()
    costs, sizes = _measure_costs(prepared, slots)
    seconds = time.perf_counter() - started_at
    counts = list(dict.fromkeys((local_slots, *sorted(slot_counts))))
    sampler = _choose_sampler(prepared.sweep, costs, len(counts))
    rows, max_scale = [], 1.0
    for count in counts:
        say(f"simulating {count:,} slot{'s' * (count > 1)}")
        row_costs = costs if count > local_slots else replace(costs, prepare_seconds=0.0)
        result, scale = simulate_sweep(prepared, sampler, row_costs, curves, count, warm_starts)
        rows.append(_build_row(result, min(count, local_slots), sizes, prepared))
        max_scale = max(max_scale, scale)
    measuring, preparing = map(format_duration, (seconds, costs.prepare_seconds))
    first_note = (
        f"Measured in {measuring} on this machine, {local_slots} trials side by side. Building "
        f"the cache takes about {preparing} before the first trial, unless it is there."
    )
    return {
        "slots": local_slots,
        "seconds": seconds,
        "before": costs.prepare_seconds,
        "rows": rows,
        "notes": [first_note, *build_notes(prepared, curves, sampler, max_scale)],
        "costs": asdict(costs),
        "environment": describe_environment(),
    }


def _measure_costs(
    prepared: PreparedSweep, slots: Slots
) -> tuple[simulation.SweepCosts, TrialSizes]:
    # Processes have other working directories, so the path is absolute.
    parent_folder = (RESULTS_FOLDER if RESULTS_FOLDER.is_dir() else Path()).absolute()
    for stale_folder in parent_folder.glob(".plan-*"):
        if time.time() - stale_folder.stat().st_mtime > STALE_AFTER_SECONDS:
            shutil.rmtree(stale_folder, ignore_errors=True)
    history = max(STARTUP_TRIALS + 1, _trials_per_cell(prepared.sweep) // 2)
    with tempfile.TemporaryDirectory(prefix=".plan-", dir=parent_folder) as folder:
        measure_proposal = partial(driver_costs.measure_proposal_seconds, prepared, history)
        costs, sizes = measure_trial_costs(prepared, slots, Path(folder), measure_proposal)
    costs = replace(
        costs,
        num_views=prepared.shared_inputs.cache_plan.augment_views if costs.view_seconds else 0,
        report_seconds=driver_costs.REPORT_SECONDS,
        event_seconds=driver_costs.EVENT_SECONDS,
        trial_seconds=driver_costs.TRIAL_SECONDS,
        startup_trials=STARTUP_TRIALS,
        tables_seconds=driver_costs.TABLES_SECONDS,
    )
    return costs, sizes


def _trials_per_cell(sweep: SweepConfig) -> int:
    """Return the number of trials of a cell, estimated if it is not limited."""
    if sweep.trials is not None:
        return sweep.trials
    if sweep.total_epochs is None:
        return 1000
    return math.ceil(2 * sweep.total_epochs / sweep.epochs / len(sweep.cells()))


def _choose_sampler(sweep: SweepConfig, costs: simulation.SweepCosts, num_simulations: int) -> str:
    """Return the sweep's sampler, or a cheaper one if its proposals would take too long."""
    num_searches, num_trials = num_simulations * len(sweep.cells()), _trials_per_cell(sweep)
    seconds = num_searches * max(0, num_trials - costs.startup_trials) * costs.proposal_seconds
    if sweep.sampler == GRID_SAMPLER or seconds <= MAX_TOTAL_PROPOSAL_SECONDS:
        return sweep.sampler
    total_trials = num_searches * num_trials
    return next(name for max_trials, name in CHEAPER_SAMPLERS if total_trials <= max_trials)


def simulate_sweep(
    prepared: PreparedSweep,
    sampler: str,
    costs: simulation.SweepCosts,
    curves: simulation.LearningCurves,
    slots: int,
    warm_start_events: Sequence[WarmStart],
) -> tuple[simulation.SimulationResult, float]:
    """Return the result of a sweep, and how many times larger it is than the simulated part.

    Args:
        prepared: the sweep.
        sampler: name of the sampler that proposes.
        costs: of the sweep.
        curves: learning curves of the trials.
        slots: number of trials at once.
        warm_start_events: what the sweep learns from earlier ones.
    """
    sweep = prepared.sweep
    limits = [
        sweep.trials and sweep.trials * len(sweep.cells()) * sweep.epochs,
        sweep.total_epochs,
        sweep.time_budget and slots * sweep.time_budget / min(costs.epoch_seconds.values()),
    ]
    max_epochs = max(MAX_SIMULATED_EPOCHS, MIN_TRIALS_PER_SLOT * slots * sweep.epochs)
    scale = max(1.0, min(limit for limit in limits if limit) / max_epochs)
    changes = {
        "sampler": sampler,
        "trials": sweep.trials and math.ceil(sweep.trials / scale),
        "total_epochs": sweep.total_epochs and math.ceil(sweep.total_epochs / scale),
        "time_budget": sweep.time_budget and sweep.time_budget / scale,
    }
    scaled = sweep.model_copy(update=changes)

    def make_policy(clock: Callable[[], float]) -> SearchPolicy:
        spaces, configure = prepared.spaces, prepared.configure_trial
        return SearchPolicy(scaled, spaces, configure, clock, lambda line: None)

    previous_verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        simulated = simulation.Simulation(make_policy, costs, curves, slots, sweep.seed)
        return simulated.run(warm_start_events).scale(scale), scale
    finally:
        optuna.logging.set_verbosity(previous_verbosity)


def _build_row(
    result: simulation.SimulationResult,
    trials_on_node: int,
    sizes: TrialSizes,
    prepared: PreparedSweep,
) -> dict[str, Any]:
    """Return the row for a number of slots; the memory is that of the driver's node."""
    num_checkpoints = CHECKPOINTS_PER_TRIAL * result.max_running + len(prepared.sweep.cells())
    epoch_bytes, trial_bytes = driver_costs.EPOCH_BYTES, driver_costs.TRIAL_BYTES
    driver_memory = psutil.Process().memory_info().rss
    return {
        **asdict(result),
        "idle_share": result.idle_share,
        "driver_share": result.driver_share,
        "cache_bytes": prepared.shared_inputs.cache_plan.num_bytes,
        "checkpoint_bytes": sizes.checkpoint * num_checkpoints,
        "log_bytes": epoch_bytes * result.epochs + trial_bytes * result.trials,
        "node_memory_bytes": trials_on_node * sizes.memory + driver_memory,
        "device_memory_bytes": sizes.device_memory,
        "limit": _describe_bottleneck(result),
    }


def _describe_bottleneck(result: simulation.SimulationResult) -> str:
    """Return a sentence about what keeps the sweep from being faster."""
    slot_seconds = result.slots * result.wall_seconds
    driver = f"the driver, busy {100 * result.driver_share:.0f} % of the time: slots wait for it"
    startup = "start-up: processes and trials take long to start, compared with their epochs"
    trials = f"too few trials: at most {result.max_running:,} run at once, fewer at the end"
    seconds = (result.waiting_seconds, result.startup_seconds, result.unused_seconds)
    shares = [lost / slot_seconds for lost in seconds]
    sentence, share = "training", result.training_seconds / slot_seconds
    if 1 - sum(shares) < TRAINING_BOUND_SHARE:
        share = max(shares)
        sentence = (driver, startup, trials)[shares.index(share)]
    return f"{sentence}, {100 * share:.0f} % of the slots' time"


def build_notes(
    prepared: PreparedSweep, curves: simulation.LearningCurves, sampler: str, scale: float
) -> Iterator[str]:
    """Yield sentences about what limits the accuracy of a plan.

    Args:
        prepared: the sweep.
        curves: learning curves of the simulations.
        sampler: name of the sampler in the simulations.
        scale: how many times larger the sweep is than its simulated part.
    """
    sweep = prepared.sweep
    if isinstance(curves, SyntheticCurves):
        guess = "Learning curves are synthetic, so what stopping saves is a guess"
        yield f"{guess}; --curves takes recorded ones."
    if isinstance(curves, RecordedCurves):
        yield "Recorded curves are those of whole trials, which no rule stopped."
        if unrecorded := [cell for cell in sweep.cells() if cell not in curves.runs]:
            names = ", ".join(map("-".join, unrecorded))
            yield f"No curves were recorded of {names}: theirs are synthetic, a guess."
    spaces = [prepared.spaces[method] for method in dict(sweep.cells())]
    points = [point.params for space in spaces for point, _ in space.probe_points()]
    if varying := sorted(EPOCH_TIME_SETTINGS & {name for params in points for name in params}):
        yield (
            f"The search varies {', '.join(varying)}, which changes how long epochs take, but one "
            "point of each cell was measured."
        )
    if sampler != sweep.sampler:
        yield (
            f"In the simulation {sampler} proposes, since {describe_sampler(sweep.sampler)} would "
            "take too long; the cost of its proposals is measured and counted."
        )
    if scale > 1:
        part = f"One part in {scale:.1f} of the largest sweep was simulated"
        yield f"{part}; its end looks longer."
    yield (
        "More slots than here are nodes like this one. Not planned for: the network between "
        "nodes, crashes, a confirmation."
    )
