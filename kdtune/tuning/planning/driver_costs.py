"""Costs of the driver: constants of `make bench-overhead`, and a measured proposal.

On another machine than the measured one, two cores of an Intel Xeon VM, a plan for more than about
a hundred slots can be wrong by some percent.
"""

import random
import time
from dataclasses import replace
from typing import Any

from kdtune.log.events import Observation, TrialState, WarmStart
from kdtune.tuning.driver.preflight import PreparedSweep
from kdtune.tuning.search import gp_sampler
from kdtune.tuning.search.samplers import AUTO_SAMPLER, GP_SAMPLER, choose_sampler
from kdtune.tuning.search.studies import CellStudies

REPORT_SECONDS, EVENT_SECONDS = 0.0025, 0.0026
"""Way of an epoch's result to the driver and back, and the driver's work for it."""

TRIAL_SECONDS, TABLES_SECONDS = 0.07, 1.0
"""The driver's other work for a trial, and its work after the last trial."""

EPOCH_BYTES, TRIAL_BYTES = 830.0, 1950.0
"""Size of an epoch, and of everything else of a trial, in the log and for TensorBoard."""

_STARTUP_TRIALS = {GP_SAMPLER: gp_sampler.STARTUP_TRIALS, "tpe": 10}
"""Ended trials of a cell that a sampler needs before it learns from any; others need none."""

MAX_HISTORY = 100
"""Maximum number of earlier trials for the measured proposal."""


def count_startup_trials(prepared: PreparedSweep) -> int:
    """Return the ended trials that the sampler of the first cell needs before it learns."""
    [(method, _), *_] = prepared.sweep.cells()
    sampler = prepared.sweep.sampler
    if sampler == AUTO_SAMPLER:
        sampler = choose_sampler(prepared.spaces[method])
    return _STARTUP_TRIALS.get(sampler, 0)


def measure_proposal_seconds(prepared: PreparedSweep, num_trials: int) -> float:
    """Measure how long a proposal for the first cell takes, after a history of random points.

    Args:
        prepared: the sweep.
        num_trials: length of the history.
    """
    [(method, model), *_] = prepared.sweep.cells()
    changes: dict[str, Any] = {"methods": (method,), "models": (model,), "baselines": False}
    changes |= {"recipe": prepared.sweep.recipe[:1], "allow_duplicates": True}
    sweep = prepared.sweep.model_copy(update=changes)
    spaces = {method: replace(prepared.spaces[method], start_points=[])}
    random_studies = CellStudies(sweep.model_copy(update={"sampler": "random"}), spaces)
    history = []
    for number in range(min(num_trials, MAX_HISTORY)):
        proposal = random_studies.propose((method, model), trial_id := f"random-{number}")
        assert proposal is not None  # the random sampler always has another point
        fields: dict[str, Any] = {"trial_id": trial_id, "state": TrialState.FINISHED}
        fields |= {"params": proposal.params, "distributions": proposal.distributions}
        accuracies = (random.Random(number).random(),)
        history.append(Observation(**fields, best_validation_accuracies=accuracies))
    studies, known = CellStudies(sweep, spaces), tuple(history)
    cell: dict[str, Any] = {"method": method, "model": model}
    studies.fold(WarmStart(**cell, source="", observations=known, start=(), reason=""))
    seconds = []
    for number in range(2):  # the first one imports modules
        started_at = time.perf_counter()
        studies.propose((method, model), f"proposed-{number}")
        seconds.append(time.perf_counter() - started_at)
    return min(seconds)
