"""Tables of what the logs hold: trials, epochs, confirm runs, students, unreadable images."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from kdtune.config.strengths import STRENGTHS
from kdtune.log import events as log_events
from kdtune.log.distributions import on_grid, parse_distributions
from kdtune.log.events import Event
from kdtune.log.settings_scores import SettingsScores
from kdtune.log.trial_history import TrialHistory, TrialRecord
from kdtune.reports.tables.columns import BAD_IMAGES, EPOCHS, LOSS_SCALES, MODELS, RUNS, TRIALS


def epochs_table(events: Iterable[Event]) -> pd.DataFrame:
    """Return `EPOCHS` with the parts of the loss."""
    rows = [
        {**event.identity, **event.as_row(), "session_seconds": event.session_seconds}
        for event in events
        if isinstance(event, log_events.EpochFinished)
    ]
    return EPOCHS.cast(pd.DataFrame(rows)) if rows else EPOCHS.make_frame()


def trials_table(events: Iterable[Event]) -> pd.DataFrame:
    """Return `TRIALS` with a column per hyperparameter, and ``configuration``.

    The weights that follow from strengths are beside them.
    """
    events = list(events)
    trials, scores = TrialHistory(events).trials.values(), _score_columns(events)
    values = [{**_searched_values(t.proposed), **_scaled_weights(t.proposed)} for t in trials]
    hyperparameters = dict.fromkeys(chain.from_iterable(values))
    rows = [
        {
            **trial_values,
            **trial.proposed.identity,
            "number": trial.proposed.number,
            "origin": trial.proposed.origin,
            "candidate": trial.proposed.candidate,
            **_outcome(trial),
            **scores.get(trial.proposed.trial_id, {}),
            "configuration": json.dumps(trial.proposed.config),
        }
        for trial, trial_values in zip(trials, values, strict=True)
    ]
    columns = dict.fromkeys([*TRIALS.names, *hyperparameter_columns(hyperparameters)])
    return TRIALS.cast(pd.DataFrame(rows, columns=[*columns, "configuration"]))


def _score_columns(events: Iterable[Event]) -> dict[str, dict[str, float]]:
    """Return the columns of the first trials of settings that have a score, by trial."""
    settings, columns = SettingsScores(events), {}
    for cell in settings.cells:
        scores, estimates = settings.scores(cell), settings.estimates(cell)
        for rank, trial_id in enumerate(settings.rank(cell), start=1):
            columns[trial_id] = {
                "mean_validation_accuracy": scores[trial_id],
                "expected_validation_accuracy": estimates.get(trial_id, np.nan),
                "rank_in_cell": rank,
            }
    return columns


def _searched_values(proposed: log_events.TrialProposed) -> dict[str, Any]:
    distributions = parse_distributions(proposed.distributions)
    return {k: on_grid(distributions.get(k), v) for k, v in proposed.params.items()}


def _scaled_weights(proposed: log_events.TrialProposed) -> dict[str, Any]:
    names = {weight for strength, weight in STRENGTHS.items() if strength in proposed.params}
    names |= proposed.loss_scales.keys()
    return {name: proposed.config[name] for name in sorted(names)}


def loss_scales_table(events: Iterable[Event]) -> pd.DataFrame:
    """Return `LOSS_SCALES`, with the ends of ranges of strengths as weights."""
    found: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    ends: dict[tuple[str, str, str], tuple[float, float]] = {}
    for event in events:
        if isinstance(event, log_events.TrialProposed):
            for strength, weight in STRENGTHS.items():
                key = (*event.cell, weight)
                if weight in event.loss_scales:
                    found[key].append(event.loss_scales[weight])
                limits = event.distributions.get(strength, {}).get("attributes", {})
                if "low" in limits:
                    ends[key] = limits["low"], limits["high"]
    rows = []
    for key, scales in found.items():
        scale, (low, high) = median(scales), ends.get(key, (math.nan, math.nan))
        rows.append((*key, scale, 1 / scale, low / scale, high / scale))
    return LOSS_SCALES.make_frame(rows)


def hyperparameter_columns(names: Iterable[str]) -> list[str]:
    """Return the names that are hyperparameters: no other column of `TRIALS` has them."""
    return [name for name in names if name not in (*TRIALS.names, "configuration")]


def runs_table(confirm_events: Iterable[Event]) -> pd.DataFrame:
    """Return `RUNS` from the log of a confirmation; without events there are no rows."""
    events = list(confirm_events)
    chosen = {e.cell: e.candidate for e in events if isinstance(e, log_events.CandidateChosen)}
    rows = [
        {
            "run_id": run.proposed.trial_id,
            "method": run.proposed.method,
            "model": run.proposed.model,
            "trial_id": run.proposed.candidate,
            "seed": run.proposed.number,
            "chosen": chosen.get(run.cell) == run.proposed.candidate,
            "test_accuracy": run.tested.test_accuracy if run.tested else np.nan,
            "test_balanced_accuracy": run.tested.test_balanced_accuracy if run.tested else np.nan,
            "configuration": json.dumps(run.proposed.config),
            **_outcome(run),
        }
        for run in TrialHistory(events).trials.values()
    ]
    return RUNS.make_frame(rows)


def _outcome(trial: TrialRecord) -> dict[str, Any]:
    best, last = trial.best_epoch, trial.epochs[-1] if trial.epochs else None
    return {
        "state": trial.state,
        "reason": trial.ended.reason if trial.ended else "",
        "restarts": len(trial.restarts),
        "epochs": last.epoch if last else 0,
        "best_validation_accuracy": best.best_validation_accuracy if best else np.nan,
        "validation_balanced_accuracy": best.validation_balanced_accuracy if best else np.nan,
        "best_epoch": best.epoch if best else pd.NA,
        "last_validation_accuracy": last.validation_accuracy if last else np.nan,
        "device_seconds": trial.device_seconds,
        "device": last.device if last else "",
        "threads": last.threads if last else pd.NA,
    }


def models_table(confirm_events: Iterable[Event]) -> pd.DataFrame:
    """Return `MODELS` from the log of a confirmation; the last measurement of a student counts."""
    measured = [e for e in confirm_events if isinstance(e, log_events.StudentProfiled)]
    return MODELS.make_frame({event.model: event.model_dump() for event in measured}.values())


def bad_images_table(events: Iterable[Event]) -> pd.DataFrame:
    """Return `BAD_IMAGES`."""
    openings = [event for event in events if isinstance(event, log_events.SweepStarted)]
    skipped = [image for opening in openings[:1] for image in opening.data.skipped_images]
    return BAD_IMAGES.make_frame(image.model_dump() for image in skipped)
