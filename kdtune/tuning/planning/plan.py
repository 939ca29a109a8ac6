"""What a sweep will take, before it is paid for: measured here, then simulated for any slots.

Rows for more slots than this machine has are for nodes like this one. How wrong plans are is
measured by benchmarks/plan.py, for sweeps that this machine can run; for larger ones nobody knows.
"""

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna

from kdtune.config.sweep import SweepConfig
from kdtune.errors import UserError
from kdtune.log.events import WarmStart
from kdtune.log.folder import RESULTS_FOLDER
from kdtune.runtime.environment import describe_environment
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.cluster.session import LOCAL_ADDRESS, find_slots, ray_session, resolve_address
from kdtune.tuning.display.screen import Screen
from kdtune.tuning.driver.preflight import PreparedSweep, prepare_sweep
from kdtune.tuning.planning.driver_costs import (
    DriverCosts,
    measure_driver_costs,
    measure_proposal_times,
)
from kdtune.tuning.planning.recorded_curves import RecordedCurves
from kdtune.tuning.planning.simulation import (
    LearningCurves,
    SimulationResult,
    SweepCosts,
    simulate,
)
from kdtune.tuning.planning.synthetic_curves import SyntheticCurves
from kdtune.tuning.planning.trial_costs import TrialCosts, measure_trial_costs
from kdtune.tuning.scheduling.search_policy import SearchPolicy
from kdtune.tuning.search.samplers import GRID_SAMPLER, describe_sampler
from kdtune.tuning.trials.trial_checkpoints import CHECKPOINTS_PER_TRIAL
from kdtune.units import format_duration

MAX_TOTAL_PROPOSAL_SECONDS = 20.0
"""Seconds that the proposals of all simulations may take; else a cheaper sampler makes them."""

CHEAPER_SAMPLERS = ((3_000, "tpe"), (math.inf, "random"))
"""Samplers in its stead: up to so many trials of all simulations together."""

STARTUP_TRIALS = 10
"""Trials of a cell that Optuna's samplers want to have seen before they learn from any."""

MAX_SIMULATED_EPOCHS, MIN_TRIALS_PER_SLOT = 60_000, 5
"""Epochs of a simulation, and whole trials of each slot, whichever is more: of a larger sweep a
part is simulated. A thousand slots take a minute or two."""

TRAINING_BOUND_SHARE = 0.75
"""Part of the slots' time from which on training itself is what a sweep waits for."""

EPOCH_TIME_SETTINGS = {"batch_size", "augment", "hint_layer"}
"""Settings that change how long an epoch takes."""

STALE_AFTER_SECONDS = 3600.0
"""Seconds after which what a killed plan left is removed; a plan needs its folder for minutes."""

Plan = dict[str, Any]
"""Plain values: ``slots`` here; ``seconds`` that measuring took; ``before``, seconds until the
first trial begins; ``rows``, see `_row`; ``notes``; ``costs``, measured; ``environment``."""


def plan_sweep(
    config: Mapping[str, Any],
    slot_counts: Sequence[int] = (),
    curves_path: Path | None = None,
    show: str = "live",
) -> Plan:
    """Plan a sweep, after the same checks.

    Args:
        config: settings of `SweepConfig`.
        counts: slots to plan for, beside those of this machine.
        curves: recorded ones, see `kdtune.tuning.planning.recorded_curves.read_runs`; imagined
            ones if None.
        show: as for `kdtune.tuning.sweep.run_sweep`.

    Raises:
        UserError: something the user gave is no good.
    """
    screen = Screen(show)
    requested = SweepConfig.parse(config)
    if invalid_counts := [count for count in slot_counts if count < 1]:
        raise UserError(f"A sweep cannot have {invalid_counts[0]} slots.")
    require_local_address(requested)
    if requested.gpus_per_trial == "auto":
        raise UserError(
            "How many trials share a GPU best is measured by a sweep alone: give a plan a number "
            "as --gpus-per-trial, or leave it out."
        )
    prepared = prepare_sweep(requested, requested.spaces)
    learning_curves = load_learning_curves(prepared, curves_path)
    with ray_session(requested.address, screen.show == "verbose", screen.warn):
        slots = find_slots(prepared.sweep, screen.warn)
        return make_plan(
            prepared,
            prepared.load_warm_start_events(),
            slots,
            slot_counts,
            learning_curves,
            screen.say,
        )


def require_local_address(sweep: SweepConfig) -> None:
    """Raise a `UserError` if a sweep is for a cluster, any node of which would be measured."""
    if resolve_address(sweep.address) != LOCAL_ADDRESS:
        raise UserError(
            "A plan is measured on this machine alone: leave --address out, and RAY_ADDRESS."
        )


def load_learning_curves(prepared: PreparedSweep, curves_path: Path | None) -> LearningCurves:
    """Curves for a sweep's trials: recorded ones where there are such, else imagined ones."""
    sweep = prepared.sweep
    synthetic = SyntheticCurves(sweep.epochs, sweep.seed)
    return (
        synthetic if curves_path is None else RecordedCurves(curves_path, sweep.epochs, synthetic)
    )


def make_plan(
    prepared: PreparedSweep,
    warm_start_events: Sequence[WarmStart],
    slots: Slots,
    slot_counts: Sequence[int],
    learning_curves: LearningCurves,
    say: Callable[[str], None],
) -> Plan:
    """Measure and simulate a sweep, in Ray's session.

    Args:
        checked: the sweep.
        learned: see `Checked.learned`.
        slots: those of this machine.
        counts: others.
        curves: what trials reach.
        say: takes lines for a person.
    """
    sweep, started_at = prepared.sweep, time.perf_counter()
    num_cells, local_slots = len(sweep.cells()), slots.count
    say(
        f"measuring {num_cells} cell{'s' * (num_cells > 1)}, {local_slots} trials side by side, then the "
        "driver: about a minute"
    )
    proposal_times: list[tuple[int, float]] = []
    parent_folder = (
        RESULTS_FOLDER if RESULTS_FOLDER.is_dir() else Path()
    ).absolute()  # processes are elsewhere
    for stale_folder in parent_folder.glob(".plan-*"):
        if time.time() - stale_folder.stat().st_mtime > STALE_AFTER_SECONDS:
            shutil.rmtree(stale_folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".plan-", dir=parent_folder) as folder:
        max_trials = sweep.trials or _estimate_trials_per_cell(sweep)
        trial_costs = measure_trial_costs(
            prepared,
            slots,
            Path(folder),
            lambda: proposal_times.extend(measure_proposal_times(prepared, max_trials)),
        )
        driver_costs = measure_driver_costs(prepared, slots, Path(folder))
    measuring_seconds = time.perf_counter() - started_at
    costs = _combine_costs(trial_costs, driver_costs, proposal_times, prepared)
    all_slot_counts = list(dict.fromkeys((local_slots, *sorted(slot_counts))))
    sampler = _choose_sampler(sweep, costs, len(all_slot_counts))
    rows, scales = [], []
    for count in all_slot_counts:
        say(f"simulating {count:,} slot{'s' * (count > 1)}")
        row_costs = costs if count > local_slots else replace(costs, prepare_seconds=0.0)
        result, scale = simulate_sweep(
            prepared, sampler, row_costs, learning_curves, count, warm_start_events
        )
        rows.append(
            _build_row(result, min(count, local_slots), trial_costs, driver_costs, prepared)
        )
        scales.append(scale)
    return {
        "slots": local_slots,
        "seconds": measuring_seconds,
        "before": trial_costs.prepare_seconds,
        "rows": rows,
        "notes": build_notes(
            prepared, local_slots, costs, learning_curves, sampler, max(scales), measuring_seconds
        ),
        "costs": asdict(costs),
        "environment": describe_environment(),
    }


def _estimate_trials_per_cell(sweep: SweepConfig) -> int:
    """Trials of a cell whose number is not limited, roughly."""
    if sweep.total_epochs is None:
        return 1000
    return math.ceil(2 * sweep.total_epochs / sweep.epochs / len(sweep.cells()))


def _combine_costs(
    trial_costs: TrialCosts,
    driver_costs: DriverCosts,
    proposal_times: list[tuple[int, float]],
    prepared: PreparedSweep,
) -> SweepCosts:
    return SweepCosts(
        epoch_seconds=trial_costs.epoch_seconds,
        epoch_relative_sd=trial_costs.epoch_relative_sd,
        process_start_seconds=driver_costs.start_seconds + trial_costs.open_seconds,
        trial_start_seconds=trial_costs.trial_start_seconds,
        checkpoint_seconds=trial_costs.checkpoint_seconds,
        report_seconds=driver_costs.report_seconds,
        prepare_seconds=trial_costs.prepare_seconds,
        view_seconds=trial_costs.view_seconds,
        num_views=prepared.shared_inputs.cache_plan.views if trial_costs.view_seconds else 0,
        event_seconds=driver_costs.event_seconds,
        trial_seconds=driver_costs.trial_seconds,
        event_seconds_per_trial=driver_costs.event_seconds_per_trial,
        proposal_times=proposal_times,
        startup_trials=STARTUP_TRIALS,
        tables_seconds=driver_costs.tables_seconds,
    )


def _choose_sampler(sweep: SweepConfig, costs: SweepCosts, simulations: int) -> str:
    """Who proposes in the simulations: the sweep's own sampler, unless that takes too long."""
    trials_per_cell = sweep.trials or _estimate_trials_per_cell(sweep)
    seconds_per_cell = sum(
        costs.proposal_seconds(number, number) for number in range(trials_per_cell)
    )
    num_searches = simulations * len(sweep.cells())
    if (
        sweep.sampler == GRID_SAMPLER
        or num_searches * seconds_per_cell <= MAX_TOTAL_PROPOSAL_SECONDS
    ):
        return sweep.sampler
    return next(
        name
        for max_trials, name in CHEAPER_SAMPLERS
        if num_searches * trials_per_cell <= max_trials
    )


def simulate_sweep(
    prepared: PreparedSweep,
    sampler: str,
    costs: SweepCosts,
    learning_curves: LearningCurves,
    slots: int,
    warm_start_events: Sequence[WarmStart],
) -> tuple[SimulationResult, float]:
    """Simulate a sweep, or a part of it.

    Args:
        checked: the sweep.
        sampler: who proposes.
        costs: what takes time.
        curves: what trials reach.
        slots: trials at once.
        learned: see `Checked.learned`.

    Returns:
        What the sweep takes, and how many times larger it is than the part.
    """
    sweep = prepared.sweep
    limits = [
        sweep.trials and sweep.trials * len(sweep.cells()) * sweep.epochs,
        sweep.total_epochs,
        sweep.time_budget and slots * sweep.time_budget / min(costs.epoch_seconds.values()),
    ]
    max_epochs = max(MAX_SIMULATED_EPOCHS, MIN_TRIALS_PER_SLOT * slots * sweep.epochs)
    scale = max(1.0, min(limit for limit in limits if limit) / max_epochs)
    scaled_sweep = sweep.model_copy(
        update={
            "sampler": sampler,
            "trials": sweep.trials and math.ceil(sweep.trials / scale),
            "total_epochs": sweep.total_epochs and math.ceil(sweep.total_epochs / scale),
            "time_budget": sweep.time_budget and sweep.time_budget / scale,
        }
    )

    def make_policy(clock: Callable[[], float]) -> SearchPolicy:
        return SearchPolicy(
            scaled_sweep, prepared.spaces, prepared.configure_trial, clock, lambda line: None
        )

    previous_verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        result = simulate(
            make_policy, costs, learning_curves, slots, sweep.seed, warm_start_events
        )
    finally:
        optuna.logging.set_verbosity(previous_verbosity)
    return result.scale(scale), scale


def _build_row(
    result: SimulationResult,
    trials_on_node: int,
    trial_costs: TrialCosts,
    driver_costs: DriverCosts,
    prepared: PreparedSweep,
) -> dict[str, Any]:
    """What a table says of so many slots; the driver's node has its memory, too."""
    bytes_per_checkpoint = max(trial_costs.checkpoint_bytes.values())
    num_checkpoints = CHECKPOINTS_PER_TRIAL * result.max_running + len(trial_costs.epoch_seconds)
    log_bytes = driver_costs.epoch_bytes * result.epochs + driver_costs.trial_bytes * result.trials
    return {
        **asdict(result),
        "idle_share": result.idle_share,
        "driver_share": result.driver_share,
        "cache_bytes": prepared.shared_inputs.cache_plan.bytes,
        "checkpoint_bytes": bytes_per_checkpoint * num_checkpoints,
        "log_bytes": log_bytes,
        "node_memory_bytes": trials_on_node * max(trial_costs.memory_bytes.values())
        + driver_costs.memory_bytes,
        "device_memory_bytes": max(trial_costs.device_memory_bytes.values()),
        "limit": _describe_bottleneck(result),
    }


def _describe_bottleneck(result: SimulationResult) -> str:
    """What keeps the sweep from being faster, in a sentence."""
    slot_seconds = result.slots * result.wall_seconds
    shares = {
        "driver": result.waiting_seconds / slot_seconds,
        "start": result.startup_seconds / slot_seconds,
        "trials": result.unused_seconds / slot_seconds,
    }
    largest = max(shares, key=shares.__getitem__)
    if 1 - sum(shares.values()) >= TRAINING_BOUND_SHARE:
        return f"training, {100 * result.training_seconds / slot_seconds:.0f} % of the slots' time"
    sentences = {
        "driver": f"the driver, busy {100 * result.driver_share:.0f} % of the time: slots wait "
        "for it",
        "start": "start-up: processes and trials take longer to begin than fits their epochs",
        "trials": f"too few trials: at most {result.max_running:,} are at work, and fewer towards the "
        "end",
    }
    return f"{sentences[largest]}, {100 * shares[largest]:.0f} % of the slots' time"


def _find_searched_settings(prepared: PreparedSweep) -> set[str]:
    """Settings that some space searches."""
    methods = {method for method, _ in prepared.sweep.cells()}
    probe_trials = (
        trial for method in methods for trial, _ in prepared.spaces[method].probe_points()
    )
    return {key for probe_trial in probe_trials for key in probe_trial.params}


def build_notes(
    prepared: PreparedSweep,
    local_slots: int,
    costs: SweepCosts,
    learning_curves: LearningCurves,
    sampler: str,
    scale: float,
    measuring_seconds: float,
) -> list[str]:
    """What has to be known of a plan.

    Args:
        checked: the sweep.
        here: slots of this machine.
        costs: what was measured.
        curves: what trials reached in the simulations.
        sampler: who proposed in them.
        part: how many times larger the sweep is than what was simulated of it.
        took: seconds that measuring took.
    """
    sweep = prepared.sweep
    notes = [
        f"Measured in {format_duration(measuring_seconds)} on this machine, {local_slots} trials side by side. "
        f"Before the first trial, views and the teacher's pass take about "
        f"{format_duration(costs.prepare_seconds)} where they are not there yet."
    ]
    if isinstance(learning_curves, SyntheticCurves):
        notes.append(
            "Learning curves are imagined: what stopping saves follows from them, and is a guess; "
            "--curves takes recorded ones."
        )
    if isinstance(learning_curves, RecordedCurves):
        notes.append("Recorded curves are of whole trials: of such as no rule stopped.")
        if unrecorded := [cell for cell in sweep.cells() if cell not in learning_curves.runs]:
            names = ", ".join(map("-".join, unrecorded))
            notes.append(f"No curves were recorded of {names}: those are imagined, and a guess.")
    if varying := sorted(_find_searched_settings(prepared) & EPOCH_TIME_SETTINGS):
        notes.append(
            f"Searched is {', '.join(varying)}, which changes how long epochs take: one point of "
            "each cell was measured, and stands for all."
        )
    if sampler != sweep.sampler:
        notes.append(
            f"In the simulation {sampler} proposes, since {describe_sampler(sweep.sampler)} would "
            "take too long; what its proposals cost the driver is measured and counted."
        )
    if scale > 1:
        notes.append(
            f"Of the largest sweep one part in {scale:.1f} was simulated, which makes its end look "
            "longer."
        )
    notes.append(
        "More slots than here are nodes like this one; how the network between them slows them is "
        "not known. Crashes are not planned for, nor is a confirmation."
    )
    return notes
