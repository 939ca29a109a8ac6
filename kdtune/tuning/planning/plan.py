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
from kdtune.log.events import Event
from kdtune.log.folder import RESULTS
from kdtune.runtime.environment import environment
from kdtune.tuning.cluster.join import LOCAL, wanted_address
from kdtune.tuning.cluster.placement import Slots
from kdtune.tuning.cluster.session import find_slots, ray_session
from kdtune.tuning.display.screen import Screen
from kdtune.tuning.driver.preflight import Checked, check_sweep
from kdtune.tuning.planning.driver_costs import DriverMeasured, measure_driver, measure_proposals
from kdtune.tuning.planning.recorded_curves import Recorded
from kdtune.tuning.planning.simulation import Costs, Curves, Outcome, simulate
from kdtune.tuning.planning.synthetic_curves import Imagined
from kdtune.tuning.planning.trial_costs import Measured, measure_trials
from kdtune.tuning.scheduling.search_policy import Search
from kdtune.tuning.search.samplers import GRID, describe_sampler
from kdtune.tuning.trials.trial_checkpoints import KEPT
from kdtune.units import duration

ASKING = 20.0
"""Seconds that the proposals of all simulations may take; else a cheaper sampler makes them."""

CHEAP = ((3_000, "tpe"), (math.inf, "random"))
"""Samplers in its stead: up to so many trials of all simulations together."""

RANDOM_FIRST = 10
"""Trials of a cell that Optuna's samplers want to have seen before they learn from any."""

MOST, ROUNDS = 60_000, 5
"""Epochs of a simulation, and whole trials of each slot, whichever is more: of a larger sweep a
part is simulated. A thousand slots take a minute or two."""

SHARE = 0.75
"""Part of the slots' time from which on training itself is what a sweep waits for."""

VARY = {"batch_size", "augment", "hint_layer"}
"""Settings that change how long an epoch takes."""

DEAD = 3600.0
"""Seconds after which what a killed plan left is removed; a plan needs its folder for minutes."""

Plan = dict[str, Any]
"""Plain values: ``slots`` here; ``seconds`` that measuring took; ``before``, seconds until the
first trial begins; ``rows``, see `_row`; ``notes``; ``costs``, measured; ``environment``."""


def plan_sweep(
    config: Mapping[str, Any],
    counts: Sequence[int] = (),
    curves: Path | None = None,
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
    given = SweepConfig.check(config)
    if bad := [count for count in counts if count < 1]:
        raise UserError(f"A sweep cannot have {bad[0]} slots.")
    refuse_elsewhere(given)
    if given.gpus_per_trial == "auto":
        raise UserError(
            "How many trials share a GPU best is measured by a sweep alone: give a plan a number "
            "as --gpus-per-trial, or leave it out."
        )
    checked = check_sweep(given, given.spaces)
    drawn = curves_of(checked, curves)
    with ray_session(given.address, screen.show == "verbose", screen.trouble):
        slots = find_slots(checked.sweep, screen.trouble)
        return make_plan(checked, checked.learned(), slots, counts, drawn, screen.say)


def refuse_elsewhere(sweep: SweepConfig) -> None:
    """Raise a `UserError` if a sweep is for a cluster, any node of which would be measured."""
    if wanted_address(sweep.address) != LOCAL:
        raise UserError(
            "A plan is measured on this machine alone: leave --address out, and RAY_ADDRESS."
        )


def curves_of(checked: Checked, path: Path | None) -> Curves:
    """Curves for a sweep's trials: recorded ones where there are such, else imagined ones."""
    sweep = checked.sweep
    imagined = Imagined(sweep.epochs, sweep.seed)
    return imagined if path is None else Recorded(path, sweep.epochs, imagined)


def make_plan(
    checked: Checked,
    learned: Sequence[Event],
    slots: Slots,
    counts: Sequence[int],
    curves: Curves,
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
    sweep, began = checked.sweep, time.perf_counter()
    cells, here = len(sweep.cells()), slots.count
    say(
        f"measuring {cells} cell{'s' * (cells > 1)}, {here} trials side by side, then the "
        "driver: about a minute"
    )
    asked: list[tuple[int, float]] = []
    where = (RESULTS if RESULTS.is_dir() else Path()).absolute()  # processes are elsewhere
    for left in where.glob(".plan-*"):
        if time.time() - left.stat().st_mtime > DEAD:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".plan-", dir=where) as folder:
        most = sweep.trials or _most_trials(sweep)
        trials = measure_trials(
            checked, slots, Path(folder), lambda: asked.extend(measure_proposals(checked, most))
        )
        driver = measure_driver(checked, slots, Path(folder))
    took = time.perf_counter() - began
    costs = _costs(trials, driver, asked, checked)
    wanted = list(dict.fromkeys((here, *sorted(counts))))
    sampler = _sampler(sweep, costs, len(wanted))
    rows, parts = [], []
    for count in wanted:
        say(f"simulating {count:,} slot{'s' * (count > 1)}")
        of_row = costs if count > here else replace(costs, prepare=0.0)
        outcome, part = simulated(checked, sampler, of_row, curves, count, learned)
        rows.append(_row(outcome, min(count, here), trials, driver, checked))
        parts.append(part)
    return {
        "slots": here,
        "seconds": took,
        "before": trials.prepare,
        "rows": rows,
        "notes": notes_on(checked, here, costs, curves, sampler, max(parts), took),
        "costs": asdict(costs),
        "environment": environment(),
    }


def _most_trials(sweep: SweepConfig) -> int:
    """Trials of a cell whose number is not limited, roughly."""
    if sweep.epochs_total is None:
        return 1000
    return math.ceil(2 * sweep.epochs_total / sweep.epochs / len(sweep.cells()))


def _costs(
    trials: Measured, driver: DriverMeasured, asked: list[tuple[int, float]], checked: Checked
) -> Costs:
    return Costs(
        epoch=trials.epoch,
        scatter=trials.scatter,
        start=driver.start + trials.opening,
        begin=trials.begin,
        checkpoint=trials.checkpoint,
        report=driver.report,
        prepare=trials.prepare,
        view=trials.view,
        views=checked.shared.kept.views if trials.view else 0,
        event=driver.event,
        trial=driver.trial,
        of_slot=driver.of_slot,
        ask=asked,
        random_first=RANDOM_FIRST,
        tables=driver.tables,
    )


def _sampler(sweep: SweepConfig, costs: Costs, simulations: int) -> str:
    """Who proposes in the simulations: the sweep's own sampler, unless that takes too long."""
    trials = sweep.trials or _most_trials(sweep)
    of_cell = sum(costs.proposal(number, number) for number in range(trials))
    times = simulations * len(sweep.cells())
    if sweep.sampler == GRID or times * of_cell <= ASKING:
        return sweep.sampler
    return next(name for most, name in CHEAP if times * trials <= most)


def simulated(
    checked: Checked,
    sampler: str,
    costs: Costs,
    curves: Curves,
    slots: int,
    learned: Sequence[Event],
) -> tuple[Outcome, float]:
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
    sweep = checked.sweep
    limits = [
        sweep.trials and sweep.trials * len(sweep.cells()) * sweep.epochs,
        sweep.epochs_total,
        sweep.time_budget and slots * sweep.time_budget / min(costs.epoch.values()),
    ]
    most = max(MOST, ROUNDS * slots * sweep.epochs)
    times = max(1.0, min(limit for limit in limits if limit) / most)
    part = sweep.model_copy(
        update={
            "sampler": sampler,
            "trials": sweep.trials and math.ceil(sweep.trials / times),
            "epochs_total": sweep.epochs_total and math.ceil(sweep.epochs_total / times),
            "time_budget": sweep.time_budget and sweep.time_budget / times,
        }
    )

    def make_search(clock: Callable[[], float]) -> Search:
        return Search(part, checked.spaces, checked.configure, clock, lambda line: None)

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        outcome = simulate(make_search, costs, curves, slots, sweep.seed, learned)
    finally:
        optuna.logging.set_verbosity(before)
    return outcome.times(times), times


def _row(
    outcome: Outcome, on_a_node: int, trials: Measured, driver: DriverMeasured, checked: Checked
) -> dict[str, Any]:
    """What a table says of so many slots; the driver's node has its memory, too."""
    checkpoints = max(trials.checkpoint_bytes.values())
    kept = KEPT * outcome.most + len(trials.epoch)
    logs = driver.epoch_bytes * outcome.epochs + driver.trial_bytes * outcome.trials
    return {
        **asdict(outcome),
        "idle_share": outcome.idle_share,
        "driver_share": outcome.driver_share,
        "cache_bytes": checked.shared.kept.bytes,
        "checkpoint_bytes": checkpoints * kept,
        "log_bytes": logs,
        "node_memory_bytes": on_a_node * max(trials.memory.values()) + driver.memory,
        "device_memory_bytes": max(trials.device_memory.values()),
        "limit": _limit(outcome),
    }


def _limit(outcome: Outcome) -> str:
    """What keeps the sweep from being faster, in a sentence."""
    whole = outcome.slots * outcome.wall
    shares = {
        "driver": outcome.waiting / whole,
        "start": outcome.starting / whole,
        "trials": outcome.unused / whole,
    }
    largest = max(shares, key=shares.__getitem__)
    if 1 - sum(shares.values()) >= SHARE:
        return f"training, {100 * outcome.training / whole:.0f} % of the slots' time"
    words = {
        "driver": f"the driver, busy {100 * outcome.driver_share:.0f} % of the time: slots wait "
        "for it",
        "start": "start-up: processes and trials take longer to begin than fits their epochs",
        "trials": f"too few trials: at most {outcome.most:,} are at work, and fewer towards the "
        "end",
    }
    return f"{words[largest]}, {100 * shares[largest]:.0f} % of the slots' time"


def _searched(checked: Checked) -> set[str]:
    """Settings that some space searches."""
    methods = {method for method, _ in checked.sweep.cells()}
    probes = (trial for method in methods for trial, _ in checked.spaces[method].probe())
    return {key for trial in probes for key in trial.params}


def notes_on(
    checked: Checked,
    here: int,
    costs: Costs,
    curves: Curves,
    sampler: str,
    part: float,
    took: float,
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
    sweep = checked.sweep
    notes = [
        f"Measured in {duration(took)} on this machine, {here} trials side by side. "
        f"Before the first trial, views and the teacher's pass take about "
        f"{duration(costs.prepare)} where they are not there yet."
    ]
    if isinstance(curves, Imagined):
        notes.append(
            "Learning curves are imagined: what stopping saves follows from them, and is a guess; "
            "--curves takes recorded ones."
        )
    if isinstance(curves, Recorded):
        notes.append("Recorded curves are of whole trials: of such as no rule stopped.")
        if unknown := [cell for cell in sweep.cells() if cell not in curves.runs]:
            names = ", ".join(map("-".join, unknown))
            notes.append(f"No curves were recorded of {names}: those are imagined, and a guess.")
    if vary := sorted(_searched(checked) & VARY):
        notes.append(
            f"Searched is {', '.join(vary)}, which changes how long epochs take: one point of "
            "each cell was measured, and stands for all."
        )
    if sampler != sweep.sampler:
        notes.append(
            f"In the simulation {sampler} proposes, since {describe_sampler(sweep.sampler)} would "
            "take too long; what its proposals cost the driver is measured and counted."
        )
    if part > 1:
        notes.append(
            f"Of the largest sweep one part in {part:.1f} was simulated, which makes its end look "
            "longer."
        )
    notes.append(
        "More slots than here are nodes like this one; how the network between them slows them is "
        "not known. Crashes are not planned for, nor is a confirmation."
    )
    return notes
