"""Signs that networks learned nothing, and the accuracy of guesses; a fold over a search's log."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from statistics import NormalDist

from kdtune.config.field_types import Metric
from kdtune.log import events
from kdtune.log.events import Cell
from kdtune.log.image_scores import chance_accuracy
from kdtune.reports.tables.sentences import display_name

FALSE_ALARM_RATE = 0.05
"""Accepted chance that accuracies above this noise are guesses, for all trials of a cell."""

MIN_EQUAL_TRIALS = 3
MAX_SENTENCES = 3
IMBALANCE_FACTOR = 1.5
"""A largest class so many times as frequent as the mean class is reason for another metric."""


class Sign(IntEnum):
    """Signs that nothing was learned, the most important first."""

    TEACHER_GUESSES = 1
    ONE_CLASS = 2  # the best network answers one class for all images
    EQUAL_TRIALS = 3  # no better than guesses, and all the same
    GUESSES = 4  # also on the training images
    MEMORISES = 5  # guesses on validation images alone
    TEACHER_BELOW_STUDENT = 6
    NOT_FITTED = 7  # guesses on the training images alone
    NOT_TOLD_APART = 8  # above guesses, and all the same


_TEXTS = {
    Sign.TEACHER_GUESSES: "The teacher's {teacher} on validation is no better than guessing "
    "({teacher_chance}): train it for more epochs, or give another.",
    Sign.ONE_CLASS: "{cells}: nothing was learned, the best network always answers the same "
    "class; try more epochs or another lr.",
    Sign.EQUAL_TRIALS: "{cells}: all trials have the same accuracy{score}, that of guessing; try "
    "more epochs or another lr.",
    Sign.GUESSES: "{cells}: no trial clearly beats guessing{versus}, not even on training images; "
    "try more epochs or another lr.",
    Sign.MEMORISES: "{cells}: no trial clearly beats guessing{versus}, except on training images; "
    "check the labels, or add epochs or images.",
    Sign.TEACHER_BELOW_STUDENT: "Without a teacher {model} does better on validation{score} "
    "than the teacher ({teacher}): train the teacher for more epochs.",
    Sign.NOT_FITTED: "{cells}: the best trial only guesses on its training images; try more "
    "epochs or another lr.",
    Sign.NOT_TOLD_APART: "{cells}: all trials have the same accuracy{score}; more validation "
    "images would tell them apart.",
}
"""What the signs mean, with what may help, in at most 25 words."""

Finding = tuple[Sign, Cell | None]


@dataclass
class _CellSummary:
    """Trials of a cell that ended with an accuracy."""

    has_teacher: bool = False
    trials: int = 0
    lowest: float = math.inf
    best: events.EpochFinished | None = None  # the best epoch of the best trial
    train_accuracy: float = 0.0  # the highest of that trial

    def add(self, best: events.EpochFinished, train_accuracy: float) -> None:
        self.trials += 1
        self.lowest = min(self.lowest, best.best_validation_accuracy)
        if self.best is None or self.score < best.best_validation_accuracy:
            self.best, self.train_accuracy = best, train_accuracy

    @property
    def score(self) -> float:
        return self.best.best_validation_accuracy if self.best else -math.inf


@dataclass(frozen=True)
class _Guessing:
    """Accuracies of networks that guess on the images of a split."""

    class_counts: Sequence[int]  # images by class; none if unknown
    images: int
    num_classes: int
    metric: Metric

    @property
    def chance(self) -> float:
        return chance_accuracy(self.class_counts, self.num_classes, self.metric)

    @property
    def mean_variance(self) -> float:
        """The variance of the accuracy if that of an image is 1."""
        counts = [count for count in self.class_counts if count]
        if self.metric == "accuracy" or not counts:
            return 1 / max(self.images, 1)
        return sum(1 / count for count in counts) / len(counts) ** 2

    def limit(self, trials: int) -> float:
        """Return the accuracy that the best of some networks that guess rarely exceeds.

        It is at most half-way from chance to 1, since few images leave no room above it.
        """
        noise = _z(trials) * math.sqrt(self.chance * (1 - self.chance) * self.mean_variance)
        return self.chance + min(noise, (1 - self.chance) / 2)


def _guessing_on_validation(opening: events.LogOpening, metric: Metric) -> _Guessing:
    data = opening.data
    split = data.validation_class_counts, data.validation_images
    return _Guessing(*split, len(data.classes), metric)


def _z(trials: int) -> float:
    """Return the normal quantile that the best of some trials exceeds in 5 % of all cases."""
    return NormalDist().inv_cdf(1 - FALSE_ALARM_RATE / max(trials, 1))


class LearningSigns:
    """Fold that finds cells of a search, and a teacher, that are no better than guesses so far."""

    def __init__(self, first_events: Iterable[events.Event] = ()):
        self.opening: events.LogOpening | None = None
        self._cells: defaultdict[Cell, _CellSummary] = defaultdict(_CellSummary)
        self._running: dict[str, tuple[events.EpochFinished, float]] = {}
        for event in first_events:
            self.fold(event)

    def fold(self, event: events.Event) -> None:
        """Add an event of the log."""
        match event:
            case events.LogOpening():
                self.opening = self.opening or event
            case events.TrialProposed():
                has_teacher = event.config.get("teacher_model") is not None
                self._cells[event.cell].has_teacher = has_teacher
            case events.EpochFinished():
                best, train_accuracy = self._running.get(event.trial_id, (event, 0.0))
                is_better = event.best_validation_accuracy > best.best_validation_accuracy
                train_accuracy = max(train_accuracy, event.train_accuracy)
                self._running[event.trial_id] = event if is_better else best, train_accuracy
            case events.TrialEnded():
                outcome = self._running.pop(event.trial_id, None)
                if outcome is not None and event.is_successful:
                    self._cells[event.cell].add(*outcome)

    def findings(self, min_trials: int = 1) -> list[Finding]:
        """Return the signs in cells with enough ended trials, the most important first.

        There is at most one of each cell itself.
        """
        if self.opening is None:
            return []
        judged = {c: s for c, s in self._cells.items() if s.trials >= max(min_trials, 1)}
        found: list[Finding] = []
        for cell, summary in judged.items():
            if (sign := _find_sign(self.opening, summary)) is not None:
                found.append((sign, cell))
        if _teacher_guesses(self.opening):
            found.append((Sign.TEACHER_GUESSES, None))
        else:
            scores = {cell: s.score for cell, s in judged.items() if not s.has_teacher}
            best = max(scores, key=scores.__getitem__, default=None)
            if best is not None and _beats_teacher(self.opening, judged[best]):
                found.append((Sign.TEACHER_BELOW_STUDENT, best))
        return sorted(found, key=lambda finding: finding[0])

    def describe(self, sign: Sign, cells: Sequence[Cell | None]) -> str:
        """Return a sentence about a sign.

        Args:
            sign: what was found.
            cells: where it was found.
        """
        assert self.opening is not None
        names = "teacher", "teacher_chance", "cells", "model", "score", "versus"
        values = dict.fromkeys(names, "")
        if (teacher := self.opening.teacher) is not None:
            guessing = _guessing_on_validation(self.opening, teacher.metric)
            values["teacher_chance"] = _percent(guessing.chance)
            values["teacher"] = _percent(teacher.validation_accuracy or 0.0)
        if (cell := cells[0]) is not None:
            values["model"], values["cells"] = cell[1], f"{display_name(cell[0])} on {cell[1]}"
        if others := len(cells) - 1:
            values["cells"] += f" and {others} more cell{'s' * (others > 1)}"
        elif cell is not None:
            score, chance = self._cells[cell].score, self.opening.chance
            values["score"] = f" ({_percent(score)})"
            values["versus"] = f" ({_percent(score)} against {_percent(chance)})"
        return _TEXTS[sign].format(**values)


def _find_sign(opening: events.LogOpening, summary: _CellSummary) -> Sign | None:
    guessing, trials = _guessing_on_validation(opening, opening.metric), summary.trials
    guesses = summary.score <= guessing.limit(trials)
    data = opening.data
    training = data.train_class_counts, data.train_images, len(data.classes)
    fits = summary.train_accuracy > _Guessing(*training, "accuracy").limit(trials)
    if summary.best is not None and summary.best.validation_top_class_share == 1:
        return Sign.ONE_CLASS
    if trials >= MIN_EQUAL_TRIALS and summary.lowest == summary.score:
        return Sign.EQUAL_TRIALS if guesses else Sign.NOT_TOLD_APART
    if guesses:
        return Sign.MEMORISES if fits else Sign.GUESSES
    return None if fits else Sign.NOT_FITTED


def _teacher_guesses(opening: events.LogOpening) -> bool:
    teacher = opening.teacher
    if teacher is None or teacher.validation_accuracy is None:
        return False
    return teacher.validation_accuracy <= _guessing_on_validation(opening, teacher.metric).limit(1)


def _beats_teacher(opening: events.LogOpening, summary: _CellSummary) -> bool:
    teacher = opening.teacher
    if teacher is None or teacher.validation_accuracy is None or teacher.metric != opening.metric:
        return False
    shares = teacher.validation_accuracy, summary.score
    mean_variance = _guessing_on_validation(opening, opening.metric).mean_variance
    sd = math.sqrt(sum(share * (1 - share) for share in shares) * mean_variance)
    return summary.score - teacher.validation_accuracy > _z(summary.trials) * sd


def learning_sentences(log: Iterable[events.Event]) -> list[str]:
    """Return at most three sentences on what a search has not learned, by its log."""
    signs = LearningSigns(log)
    by_sign: defaultdict[Sign, list[Cell | None]] = defaultdict(list)
    for sign, cell in signs.findings():
        by_sign[sign].append(cell)
    return [signs.describe(sign, cells) for sign, cells in by_sign.items()][:MAX_SENTENCES]


def describe_chance(opening: events.LogOpening) -> str:
    """Return a sentence on what guessing reaches, and on the metric of all accuracies."""
    num_classes, chance = len(opening.data.classes), _percent(opening.chance)
    if opening.metric == "balanced_accuracy":
        return f"All accuracies are balanced, the mean recall of the classes; guessing: {chance}."
    if opening.chance * num_classes < IMBALANCE_FACTOR:
        return f"Always answering one class gives {chance} of the validation images."
    return (
        f"Always answering the largest class gives {chance} of the validation images, guessing "
        f"{_percent(1 / num_classes)}; --metric balanced_accuracy counts all classes alike."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
