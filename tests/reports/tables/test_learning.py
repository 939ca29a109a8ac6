"""Signs that nothing was learned: each where it is due, and nowhere else."""

import numpy as np
import pytest
from event_logs import make_metrics
from report_sweeps import proposed, sweep_started

from kdtune.log.events import EpochFinished, TeacherSummary, TrialEnded
from kdtune.reports.tables.learning import LearningSigns, Sign, describe_chance, learning_sentences

COUNTS = {"validation_images": 400, "train_images": 800}
"""A large split of two classes: sd of guesses 2.5 points, and 1.8 on the training images."""


def opened(teacher=None, metric="accuracy", teacher_metric="accuracy", **data):
    opening = sweep_started({"metric": metric}, **{**COUNTS, **data})
    if teacher is None:
        return opening
    summary = TeacherSummary(
        path="t.pth", sha256="h", model="T", metric=teacher_metric, validation_accuracy=teacher
    )
    return opening.model_copy(update={"teacher": summary})


def trials(cell, *scores, train=0.9, top_share=0.6, state="finished"):
    """Yield trials of one epoch with these scores."""
    for number, score in enumerate(scores):
        event = proposed(f"{cell}-{number:03d}", number)
        trial = event.identity
        taught = {"teacher_model": None if cell.startswith("student") else "t.pth"}
        yield event.model_copy(update={"config": {**event.config, **taught}})
        metrics = make_metrics(
            1, score, train_accuracy=train, validation_top_class_share=top_share
        )
        yield EpochFinished(**trial, **dict(metrics))
        yield TrialEnded(**trial, state=state, reason="", epochs=1, best_validation_accuracy=score)


def signs(*logs, opening=None, min_trials=1):
    events = [opening or opened(), *(event for log in logs for event in log)]
    return LearningSigns(events).findings(min_trials)


AT, STUDENT = ("at", "A"), ("student", "A")


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (trials("at-A", 0.7, 0.8), None),
        (trials("at-A", 0.5, 0.5, top_share=1.0), Sign.ONE_CLASS),
        (trials("at-A", 0.5, 0.5, 0.5), Sign.EQUAL_TRIALS),
        (trials("at-A", 0.5, 0.5), Sign.MEMORISES),  # two may agree by chance
        # Guesses: 0.5 + 1.96 · 0.025 for two trials, with a share of 0.025 each.
        (trials("at-A", 0.52, 0.548), Sign.MEMORISES),
        (trials("at-A", 0.52, 0.548, train=0.53), Sign.GUESSES),
        (trials("at-A", 0.52, 0.55), None),
        (trials("at-A", 0.52, 0.55, train=0.53), Sign.NOT_FITTED),
        (trials("at-A", 0.9, 0.9, 0.9), Sign.NOT_TOLD_APART),
        (trials("at-A", 0.5, 0.5, state="diverged"), None),
        (trials("at-A", 0.5, 0.5, state="crashed"), None),
    ],
)
def test_each_sign_of_a_cell(log, expected):
    assert signs(log) == ([] if expected is None else [(expected, AT)])


def test_more_trials_need_a_higher_accuracy():
    """The best of a hundred networks that guess is better than that of two."""
    assert signs(trials("at-A", 0.50, 0.56)) == []
    [(sign, _)] = signs(trials("at-A", *np.linspace(0.50, 0.56, 100)))
    assert sign is Sign.MEMORISES


def test_the_best_epoch_of_the_best_trial_counts():
    """A trial that answered one class only at first, or that is not the best, is no sign."""
    one_class = trials("at-A", 0.5, top_share=1.0)
    better = [event.model_copy(update={"trial_id": "at-A-001"}) for event in trials("at-A", 0.8)]
    assert signs(one_class, better) == []
    first, second = (
        make_metrics(n, score, train_accuracy=score, validation_top_class_share=share)
        for n, score, share in ((1, 0.5, 1.0), (2, 0.8, 0.6))
    )
    asked, _, end = trials("at-A", 0.8)
    named = asked.identity
    epochs = [EpochFinished(**named, **dict(metrics)) for metrics in (first, second)]
    assert signs([asked, *epochs, end]) == []
    assert signs([asked, epochs[0]]) == []  # it has not ended


def test_a_large_class_makes_high_accuracies_guesses():
    """0.95 is the share of the largest class of validation, and 38 of 39 that of training."""
    opening = opened(
        validation_images=20, train_images=39,
        validation_class_counts=(19, 1), train_class_counts=(38, 1),
    )  # fmt: skip
    assert signs(trials("student-A", 0.95, train=38 / 39), opening=opening) == [
        (Sign.GUESSES, STUDENT)
    ]
    assert signs(trials("student-A", 1.0, train=1.0), opening=opening) == []
    balanced = opened(
        metric="balanced_accuracy", validation_images=40, validation_class_counts=(20, 20),
        train_images=800, train_class_counts=(400, 400),
    )  # fmt: skip
    # One trial: 0.5 + 1.645 · 0.5 · sqrt((1/20 + 1/20) / 4) = 0.63.
    assert signs(trials("student-A", 0.625), opening=balanced) == [(Sign.MEMORISES, STUDENT)]
    assert signs(trials("student-A", 0.65), opening=balanced) == []


def test_teachers():
    student = trials("student-A", 0.80, 0.70)
    assert signs(opening=opened(0.54)) == [(Sign.TEACHER_GUESSES, None)]
    assert signs(opening=opened(0.55)) == []
    # sd of the difference: sqrt((0.7 · 0.3 + 0.8 · 0.2) / 400) = 3 points, twice 1.96.
    events = list(student)
    assert signs(events, opening=opened(0.73)) == [(Sign.TEACHER_BELOW_STUDENT, STUDENT)]
    assert signs(events, opening=opened(0.75)) == []
    assert signs(trials("at-A", 0.80), opening=opened(0.70)) == []  # it has a teacher
    other = opened(0.60, teacher_metric="balanced_accuracy")
    assert signs(events, opening=other) == []  # its accuracy is another one


def test_the_most_important_signs_come_first_and_cells_share_a_sentence():
    log = [
        opened(0.5),
        *trials("at-A", 0.9, 0.9, 0.9),
        *trials("kd-A", 0.5, top_share=1.0),
        *trials("at-B", 0.5, top_share=1.0),
        *trials("kd-B", 0.5, train=0.5),
    ]
    found = learning_sentences(log)
    assert found == [
        "The teacher's 50.0 % on validation is no better than guessing (50.0 %): train it for "
        "more epochs, or give another.",
        "KD on A and 1 more cell: nothing was learned, the best network always answers the same "
        "class; try more epochs or another lr.",
        "KD on B: no trial clearly beats guessing (50.0 % against 50.0 %), not even on training "
        "images; try more epochs or another lr.",
    ]
    assert learning_sentences([opened(), *trials("at-A", 0.8, 0.7)]) == []
    assert learning_sentences([]) == []


@pytest.mark.parametrize("sign", Sign)
@pytest.mark.parametrize("others", [0, 11])
def test_sentences_are_short_and_never_advise_more_trials(sign, others):
    found = LearningSigns([opened(0.5), *trials("student-A", 1.0)])
    cells = [None] if sign is Sign.TEACHER_GUESSES else [STUDENT] * (1 + others)
    sentence = found.describe(sign, cells)
    assert len(sentence.split()) <= 25 and sentence.endswith(".")
    assert "more trials" not in sentence and "{" not in sentence
    advised = "epochs", "lr", "images", "teacher"
    assert any(word in sentence for word in advised)


@pytest.mark.parametrize(
    ("metric", "counts", "sentence"),
    [
        ("accuracy", (), "Always answering one class gives 50.0 % of the validation images."),
        ("accuracy", (11, 9), "Always answering one class gives 55.0 % of the validation images."),
        (
            "accuracy", (19, 1),
            "Always answering the largest class gives 95.0 % of the validation images, guessing "
            "50.0 %; --metric balanced_accuracy counts all classes alike.",
        ),
        (
            "balanced_accuracy", (19, 1),
            "All accuracies are balanced, the mean recall of the classes; guessing: 50.0 %.",
        ),
    ],
)  # fmt: skip
def test_what_guessing_reaches(metric, counts, sentence):
    assert describe_chance(opened(metric=metric, validation_class_counts=counts)) == sentence
    assert len(sentence.split()) <= 25
