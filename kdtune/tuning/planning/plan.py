"""Plans of sweeps, from measurements on this machine and a simulation.

Rows for more slots than this machine has are for several nodes like it.
"""

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import psutil

from kdtune.config.sweep import SweepConfig
from kdtune.errors import UserError
from kdtune.log.distributions import quiet_optuna
from kdtune.log.folder import RESULTS_FOLDER
from kdtune.runtime.environment import describe_environment
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.cluster.session import LOCAL_ADDRESS, find_slots, ray_session, resolve_address
from kdtune.tuning.display.screen import Screen
from kdtune.tuning.driver.preflight import PreparedSweep, prepare_sweep
from kdtune.tuning.planning import driver_costs
from kdtune.tuning.planning import simulation as sim
from kdtune.tuning.planning.recorded_curves import RecordedCurves
from kdtune.tuning.planning.synthetic_curves import SyntheticCurves
from kdtune.tuning.planning.training_worker import TrialCosts
from kdtune.tuning.planning.trial_costs import measure_trial_costs
from kdtune.tuning.scheduling.search_policy import SearchPolicy
from kdtune.tuning.search.samplers import GRID_SAMPLER, describe_sampler
from kdtune.tuning.trials.best_weights import KEPT_TRIALS_PER_CELL
from kdtune.tuning.trials.trial_checkpoints import CHECKPOINTS_PER_TRIAL
from kdtune.units import format_duration

MAX_TOTAL_PROPOSAL_SECONDS = 20.0
"""Maximum time for the proposals of all simulations; beyond it a cheaper sampler makes them."""

MAX_TPE_TRIALS = 3_000
"""Maximum trials of all simulations for which TPE is the cheaper sampler; else it is random."""

MAX_SIMULATED_EPOCHS, MIN_TRIALS_PER_SLOT = 60_000, 5
"""Larger sweeps are simulated in part, with the larger of these numbers of epochs and trials."""

TRAINING_BOUND_SHARE = 0.75
"""Share of the slots' time from which on training is what limits a sweep."""

EPOCH_TIME_SETTINGS = {"batch_size", "augment", "hint_layer"}
"""Settings that change how long an epoch takes."""

Plan = dict[str, Any]
"""Plain values: ``slots`` of this machine; ``seconds`` that measuring took; ``before``, seconds
until the first trial starts; ``rows``, one for each number of slots; ``notes``; ``costs``;
``environment``."""


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
    curves: sim.LearningCurves = SyntheticCurves(requested.epochs, requested.seed)
    if curves_path is not None:
        curves = RecordedCurves(curves_path, requested.epochs, fallback=curves)
    prepared = prepare_sweep(requested, requested.spaces)
    for line in prepared.left_out:
        screen.say(line)
    with ray_session(requested.address, screen.show == "verbose", screen.warn, screen.say):
        slots = find_slots(prepared.sweep, screen.warn)
        planner = Planner(prepared, curves)
        for line in prepared.shared_inputs.decoded.data.describe():
            screen.say(line)
        return planner.make_plan(slots, slot_counts, screen.say)


def require_local_address(sweep: SweepConfig) -> None:
    """Raise a `UserError` if a sweep is for a cluster."""
    if resolve_address(sweep.address) != LOCAL_ADDRESS:
        raise UserError(
            "A plan is measured on this machine alone: leave --address out, and RAY_ADDRESS."
        )


@dataclass(frozen=True)
class Planner:
    """Plans of a sweep with given learning curves, for different numbers of slots."""

    prepared: PreparedSweep
    curves: sim.LearningCurves

    def make_plan(
        self, slots: Slots, slot_counts: Sequence[int], say: Callable[[str], None]
    ) -> Plan:
        """Measure and simulate the sweep in a Ray session.

        Args:
            slots: those of this machine.
            slot_counts: other numbers of slots.
            say: writes a line.
        """
        num_cells, local_slots = len(self.prepared.sweep.cells()), slots.count
        cells = f"{num_cells} cell{'s' * (num_cells > 1)}"
        say(f"measuring {cells}, {local_slots} trials side by side: about a minute")
        started_at = time.perf_counter()
        costs, largest = self._measure_costs(slots)
        seconds = time.perf_counter() - started_at
        counts = list(dict.fromkeys((local_slots, *sorted(slot_counts))))
        sampler = _choose_sampler(self.prepared.sweep, costs, len(counts))
        rows, max_scale = [], 1.0
        for count in counts:
            say(f"simulating {count:,} slot{'s' * (count > 1)}")
            row_costs = costs if count > local_slots else replace(costs, prepare_seconds=0.0)
            result, scale = self.simulate(sampler, row_costs, count)
            rows.append(self._build_row(result, min(count, local_slots), largest))
            max_scale = max(max_scale, scale)
        measuring, preparing = map(format_duration, (seconds, costs.prepare_seconds))
        note = f"Measured in {measuring} on this machine, {local_slots} trials side by side."
        note += f" Building the cache takes about {preparing} before the first trial"
        return {
            "slots": local_slots,
            "seconds": seconds,
            "before": costs.prepare_seconds,
            "rows": rows,
            "notes": [f"{note}, unless it is there.", *self.describe_limits(sampler, max_scale)],
            "costs": asdict(costs),
            "environment": describe_environment(),
        }

    def _measure_costs(self, slots: Slots) -> tuple[sim.SweepCosts, TrialCosts]:
        # Processes have other working directories, so the path is absolute.
        parent_folder = (RESULTS_FOLDER if RESULTS_FOLDER.is_dir() else Path()).absolute()
        for stale_folder in parent_folder.glob(".plan-*"):
            if time.time() - stale_folder.stat().st_mtime > 3600:  # a plan takes minutes
                shutil.rmtree(stale_folder, ignore_errors=True)
        startup_trials = driver_costs.count_startup_trials(self.prepared)
        history = max(startup_trials + 1, _trials_per_cell(self.prepared.sweep) // 2)
        with tempfile.TemporaryDirectory(prefix=".plan-", dir=parent_folder) as folder:
            return measure_trial_costs(self.prepared, slots, Path(folder), history)

    def simulate(
        self, sampler: str, costs: sim.SweepCosts, slots: int
    ) -> tuple[sim.SimulationResult, float]:
        """Return the result of the sweep, and how many times larger it is than the simulated part.

        Args:
            sampler: name of the sampler that proposes.
            costs: of the sweep.
            slots: number of trials at once.
        """
        prepared, sweep = self.prepared, self.prepared.sweep
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
        inputs = sweep.model_copy(update=changes), prepared.spaces, prepared.configure_trial
        make_policy = partial(SearchPolicy, *inputs, say=lambda line: None)
        with quiet_optuna(optuna.logging.ERROR):
            simulated = sim.Simulation(make_policy, costs, self.curves, slots, sweep.seed)
            return simulated.run(prepared.warm_start_events).scale(scale), scale

    def _build_row(
        self, result: sim.SimulationResult, trials_on_node: int, largest: TrialCosts
    ) -> dict[str, Any]:
        """Return the row for a number of slots; the memory is that of the driver's node."""
        num_checkpoints = CHECKPOINTS_PER_TRIAL * result.max_running
        kept_trials = 2 * KEPT_TRIALS_PER_CELL * len(self.prepared.sweep.cells())
        num_checkpoints += CHECKPOINTS_PER_TRIAL * kept_trials
        epoch_bytes, trial_bytes = driver_costs.EPOCH_BYTES, driver_costs.TRIAL_BYTES
        driver_memory = psutil.Process().memory_info().rss
        return {
            **asdict(result),
            "idle_share": result.idle_share,
            "driver_share": result.driver_share,
            "cache_bytes": self.prepared.shared_inputs.cache_plan.num_bytes,
            "checkpoint_bytes": largest.checkpoint_bytes * num_checkpoints,
            "log_bytes": epoch_bytes * result.epochs + trial_bytes * result.trials,
            "node_memory_bytes": trials_on_node * largest.memory_bytes + driver_memory,
            "device_memory_bytes": largest.device_memory_bytes,
            "limit": _describe_bottleneck(result),
        }

    def describe_limits(self, sampler: str, scale: float) -> Iterator[str]:
        """Yield sentences about what is cached, and about what limits the accuracy of a plan.

        Args:
            sampler: name of the sampler in the simulations.
            scale: how many times larger the sweep is than its simulated part.
        """
        sweep, curves = self.prepared.sweep, self.curves
        for line in self.prepared.shared_inputs.cache_plan_lines:
            yield f"Cache: {line}."
        if isinstance(curves, SyntheticCurves):
            guess = "Learning curves are synthetic, so what stopping saves is a guess"
            yield f"{guess}; --curves takes recorded ones."
        if isinstance(curves, RecordedCurves):
            yield "Recorded curves are those of whole trials, which no rule stopped."
            if unrecorded := [cell for cell in sweep.cells() if cell not in curves.runs]:
                names = ", ".join(map("-".join, unrecorded))
                yield f"No curves were recorded of {names}: theirs are synthetic, a guess."
        spaces = [self.prepared.spaces[method] for method in sweep.all_methods]
        points = [point.params for space in spaces for point, _ in space.probe_points()]
        if varying := sorted(EPOCH_TIME_SETTINGS & {name for params in points for name in params}):
            change = f"varies {', '.join(varying)}, which changes how long epochs take"
            yield f"The search {change}, but one point of each cell was measured."
        if sampler != sweep.sampler:
            reason = f"since {describe_sampler(sweep.sampler)} would take too long"
            cost = "the cost of its proposals is measured and counted"
            yield f"In the simulation {sampler} proposes, {reason}; {cost}."
        if scale > 1:
            part = f"One part in {scale:.1f} of the largest sweep was simulated"
            yield f"{part}; its end looks longer."
        yield (
            "More slots than here are nodes like this one. Not planned for: the network between "
            "nodes, crashes, a confirmation."
        )


def _trials_per_cell(sweep: SweepConfig) -> int:
    """Return the number of trials of a cell, estimated if it is not limited."""
    if sweep.trials is not None:
        return sweep.trials
    if sweep.total_epochs is None:
        return 1000
    return math.ceil(2 * sweep.total_epochs / sweep.epochs / len(sweep.cells()))


def _choose_sampler(sweep: SweepConfig, costs: sim.SweepCosts, num_simulations: int) -> str:
    """Return the sweep's sampler, or a cheaper one if its proposals would take too long."""
    num_searches, num_trials = num_simulations * len(sweep.cells()), _trials_per_cell(sweep)
    seconds = num_searches * max(0, num_trials - costs.startup_trials) * costs.proposal_seconds
    if sweep.sampler == GRID_SAMPLER or seconds <= MAX_TOTAL_PROPOSAL_SECONDS:
        return sweep.sampler
    return "tpe" if num_searches * num_trials <= MAX_TPE_TRIALS else "random"


def _describe_bottleneck(result: sim.SimulationResult) -> str:
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
