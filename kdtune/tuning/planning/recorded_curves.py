"""Recorded learning curves, of a sweep's finished trials or of a file.

A file has one JSON object per line with ``method``, ``model``, the searched ``settings``,
``seed``, ``step_size``, ``seconds`` of an epoch, and ``validation_accuracy`` after each epoch.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdtune.errors import UserError
from kdtune.log.distributions import parse_distributions
from kdtune.log.events import Cell, TrialProposed, TrialState
from kdtune.log.folder import SweepFolder
from kdtune.log.trial_history import TrialHistory
from kdtune.tuning.planning.simulation import LearningCurves
from kdtune.tuning.planning.synthetic_curves import to_unit_interval


@dataclass(frozen=True)
class RecordedRun:
    """A recorded run with its searched values and its validation accuracies by epoch."""

    params: dict[str, Any]
    accuracies: list[float]
    step_size: int | None = None  # epochs between two decays of its learning rate


def load_finished_trials(folder: SweepFolder) -> Iterator[dict[str, Any]]:
    """Yield the finished trials of a sweep as plain values."""
    for trial in TrialHistory(folder.load_events()).trials.values():
        if trial.state is not TrialState.FINISHED:
            continue
        proposed = trial.proposed
        yield {
            "method": proposed.method,
            "model": proposed.model,
            "settings": {
                name: float(f"{value:.6g}") if isinstance(value, float) else value
                for name, value in proposed.params.items()
            },
            **{name: proposed.config[name] for name in ("seed", "step_size")},
            "seconds": round(trial.device_seconds / len(trial.epochs), 3),
            "validation_accuracy": [epoch.validation_accuracy for epoch in trial.epochs],
        }


def load_recorded_runs(path: Path) -> dict[Cell, list[RecordedRun]]:
    """Return the recorded runs of a file or of a sweep's folder, by cell."""
    if path.is_dir():
        rows = list(load_finished_trials(SweepFolder(path)))
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    runs: dict[Cell, list[RecordedRun]] = defaultdict(list)
    for row in rows:
        run = RecordedRun(row["settings"], row["validation_accuracy"], row.get("step_size"))
        runs[row["method"], row["model"]].append(run)
    if not runs:
        raise ValueError("there are no runs")
    return runs


@dataclass
class RecordedCurves(LearningCurves):
    """Learning curves of the recorded runs of the same cell with the nearest settings."""

    path: Path  # a file or a sweep's folder
    epochs: int  # of a trial that is not stopped; curves of another length are stretched
    fallback: LearningCurves  # curves of cells without recorded runs

    def __post_init__(self) -> None:
        try:
            self.runs = load_recorded_runs(self.path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{self.path} has no recorded curves: give a sweep's folder with finished trials, "
                "or a file with a JSON object per line."
            ) from None

    def draw_curve(self, proposal: TrialProposed) -> Sequence[float]:
        if not (runs := self.runs.get(proposal.cell)):
            return self.fallback.draw_curve(proposal)
        distributions = parse_distributions(proposal.distributions)
        point = to_unit_interval(proposal.params, distributions)

        def distance(run: RecordedRun) -> float:
            total = 0.0
            for name in sorted(point.keys() & run.params.keys()):
                try:
                    other = to_unit_interval({name: run.params[name]}, distributions)
                    total += (point[name] - other[name]) ** 2
                except (TypeError, ValueError):  # the choice was removed from the space
                    total += 1.0
            return total

        accuracies = min(runs, key=distance).accuracies
        positions, recorded = (np.linspace(0, 1, n) for n in (self.epochs, len(accuracies)))
        curve: list[float] = np.interp(positions, recorded, accuracies).tolist()
        return curve
