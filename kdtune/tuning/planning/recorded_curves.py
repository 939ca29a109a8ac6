"""Recorded learning curves, of a sweep's finished trials or of a file.

A file has one JSON object per line with ``method``, ``model``, the searched ``settings``,
``seed``, ``step_size``, ``seconds`` of an epoch, and ``validation_accuracy`` after each epoch.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
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
    """A recorded run.

    Attributes:
        params: searched values.
        accuracies: validation accuracies by epoch.
        late_decay: True if its learning rate decays later than that of most others.
    """

    params: dict[str, Any]
    accuracies: list[float]
    late_decay: bool = False


def load_finished_trials(folder: SweepFolder) -> Iterator[dict[str, Any]]:
    """Yield the finished trials of a sweep as plain values."""
    for trial in TrialHistory(folder.load_events()).trials.values():
        if trial.state is not TrialState.FINISHED:
            continue
        config = trial.proposed.config
        yield {
            "method": trial.proposed.method,
            "model": trial.proposed.model,
            "settings": {
                name: float(f"{value:.6g}") if isinstance(value, float) else value
                for name, value in trial.proposed.params.items()
            },
            "seed": config["seed"],
            "step_size": config["step_size"],
            "seconds": round(trial.device_seconds / len(trial.epochs), 3),
            "validation_accuracy": [epoch.validation_accuracy for epoch in trial.epochs],
        }


def load_recorded_runs(path: Path) -> dict[Cell, list[RecordedRun]]:
    """Return the recorded runs of a file or of a sweep's folder, by cell."""
    if path.is_dir():
        rows = list(load_finished_trials(SweepFolder(path)))
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    [(usual_step_size, _)] = Counter(row.get("step_size") for row in rows).most_common(1)
    runs: dict[Cell, list[RecordedRun]] = defaultdict(list)
    for row in rows:
        late_decay = row.get("step_size") != usual_step_size
        run = RecordedRun(row["settings"], row["validation_accuracy"], late_decay)
        runs[row["method"], row["model"]].append(run)
    return runs


class RecordedCurves(LearningCurves):
    """Learning curves of the recorded runs of the same cell with the nearest settings.

    Curves of another length are stretched.

    Args:
        path: a file or a sweep's folder.
        epochs: of a trial that is not stopped.
        fallback: curves of cells without recorded runs.

    Raises:
        UserError: `path` has no recorded run.
    """

    def __init__(self, path: Path, epochs: int, fallback: LearningCurves):
        self.epochs, self.fallback = epochs, fallback
        try:
            self.runs: Mapping[Cell, list[RecordedRun]] = load_recorded_runs(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{path} has no recorded curves: give a sweep's folder with finished trials, "
                "or a file with a JSON object per line."
            ) from None

    def draw_curve(self, proposal: TrialProposed) -> Sequence[float]:
        """Return the validation accuracies of a trial by epoch."""
        runs = self.runs.get(proposal.cell)
        if not runs:
            return self.fallback.draw_curve(proposal)
        distributions = parse_distributions(proposal.distributions)
        point = to_unit_interval(proposal.params, distributions)

        def squared_distance(name: str, value: Any) -> float:
            try:
                [coordinate] = to_unit_interval({name: value}, distributions).values()
            except (TypeError, ValueError):  # the choice was removed from the space
                return 1.0
            return (point[name] - coordinate) ** 2

        def distance(run: RecordedRun) -> float:
            shared_names = point.keys() & run.params.keys()
            return sum(squared_distance(name, run.params[name]) for name in sorted(shared_names))

        accuracies = min(runs, key=distance).accuracies
        positions, recorded = (np.linspace(0, 1, n) for n in (self.epochs, len(accuracies)))
        curve: list[float] = np.interp(positions, recorded, accuracies).tolist()
        return curve
