"""Scores of the settings that a search tried, over a trial and its repeats; a fold over its log.

Settings are known by their first trial. Their score is the mean over their finished runs, or the
accuracy of the trial if none finished.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean

from kdtune.log import events
from kdtune.log.events import Cell, TrialState


@dataclass
class _Runs:
    """The runs of some settings: a trial and its repeats."""

    first: float | None = None  # accuracy of the trial, if that counts
    finished: list[float] = field(default_factory=list)  # accuracies

    @property
    def score(self) -> float | None:
        return None if self.first is None else fmean(self.finished or [self.first])


class SettingsScores:
    """Scores and ranks of the settings of all cells.

    Attributes:
        models: the models of the cells of which no trial was proposed or ended since.
    """

    def __init__(self, first_events: Iterable[events.Event] = ()):
        self.models: dict[Cell, events.CellModelled] = {}
        self._runs: defaultdict[Cell, dict[str, _Runs]] = defaultdict(dict)
        self._first_trials: dict[str, str] = {}  # by trial
        self._best_accuracies: dict[str, float] = {}  # of running trials
        for event in first_events:
            self.fold(event)

    def fold(self, event: events.Event) -> None:
        """Add an event of the log."""
        match event:
            case events.TrialProposed():
                self.models.pop(event.cell, None)
                first_trial = self._first_trials[event.trial_id] = event.first_trial_id
                self._runs[event.cell].setdefault(first_trial, _Runs())
            case events.EpochFinished(trial_id=trial_id, best_validation_accuracy=accuracy):
                self._best_accuracies[trial_id] = accuracy
            case events.TrialEnded():
                self.models.pop(event.cell, None)
                self._add_end(event)
            case events.CellModelled():
                self.models[event.cell] = event

    def _add_end(self, event: events.TrialEnded) -> None:
        first_trial = self._first_trials[event.trial_id]
        accuracy = self._best_accuracies.pop(event.trial_id, None)
        if accuracy is None or not event.is_successful:
            return
        runs = self._runs[event.cell][first_trial]
        if event.state is TrialState.FINISHED:
            runs.finished.append(accuracy)
        if event.trial_id == first_trial:
            runs.first = accuracy

    @property
    def cells(self) -> list[Cell]:
        return list(self._runs)

    def scores(self, cell: Cell) -> dict[str, float]:
        """Return the scores of a cell by first trial, in the order of their proposals."""
        scores = {trial_id: runs.score for trial_id, runs in self._runs[cell].items()}
        return {trial_id: score for trial_id, score in scores.items() if score is not None}

    def estimates(self, cell: Cell) -> dict[str, float]:
        """Return what the model of a cell expects of its trials, the best first, if it has one."""
        model = self.models.get(cell)
        return {e.trial_id: e.mean for e in model.estimates} if model is not None else {}

    def rank(self, cell: Cell) -> list[str]:
        """Return the first trials of a cell, the best first, the earliest of equals.

        Those that its model has estimated come before all others, in the order of the model.
        """
        scores = self.scores(cell)
        places = {trial_id: place for place, trial_id in enumerate(self.estimates(cell))}
        return sorted(scores, key=lambda t: (places.get(t, len(places)), -scores[t]))

    def repeat_sd(self, cell: Cell) -> float | None:
        """Return the standard deviation over seeds, pooled over repeated settings, if any are."""
        repeated = [r.finished for r in self._runs[cell].values() if len(r.finished) > 1]
        squares = [(a - fmean(finished)) ** 2 for finished in repeated for a in finished]
        return math.sqrt(sum(squares) / (len(squares) - len(repeated))) if repeated else None

    def noise_sd(self, cell: Cell) -> float | None:
        """Return the standard deviation over seeds by the model, or else by the repeats."""
        model = self.models.get(cell)
        return model.noise_sd if model is not None else self.repeat_sd(cell)
