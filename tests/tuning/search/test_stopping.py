"""Early stopping, with thresholds computed by hand."""

import pytest
from event_logs import make_metrics
from sweep_harness import sweep_config

from kdtune.log.events import EpochFinished, Observation, TrialProposed, TrialState, WarmStart
from kdtune.tuning.search.stopping import EarlyStopping, Threshold, rung_epochs


def make_stopping(scheduler, *rungs):
    names = ("epochs", "grace_period", "reduction_factor")
    return EarlyStopping(sweep_config(scheduler=scheduler, **dict(zip(names, rungs, strict=True))))


def propose(stopping, trial_id, cell, candidate=None, **config):
    stopping.fold(
        TrialProposed(
            trial_id=trial_id, method=cell[0], model=cell[1], number=0,
            origin="repeat" if candidate else "sampler", candidate=candidate,
            params={}, distributions={}, config=config,
        )
    )  # fmt: skip


def report(stopping, trial_id, cell, epoch, best):
    """Report an epoch; return the threshold that the trial missed."""
    metrics = dict(make_metrics(epoch, best))
    stopping.fold(EpochFinished(trial_id=trial_id, method=cell[0], model=cell[1], **metrics))
    return stopping.missed_thresholds[trial_id]


def judge(stopping, *bests, epoch, cell=("at", "A")):
    """Return the thresholds missed by trials that come to an epoch one after the other."""
    missed = []
    for number, best in enumerate(bests):
        trial_id = f"{'-'.join(cell)}-{number}"
        if trial_id not in stopping.bracket_of:
            propose(stopping, trial_id, cell)
        missed.append(report(stopping, trial_id, cell, epoch, best))
    return missed


def test_asha_compares_with_those_that_were_there_before():
    stopping = make_stopping("asha", 8, 2, 2)
    assert judge(stopping, 0.1, 0.9, epoch=1) == [None, None]  # no rung
    missed = judge(stopping, 0.5, 0.7, 0.55, 0.6, epoch=2)
    assert missed[:2] == [None, None] and missed[3] is None  # 0.6 is above the median of the three
    assert missed[2] == Threshold(2, pytest.approx(0.6), 2)
    assert judge(stopping, 0.6, 0.6, epoch=4) == [None, None]  # equal is not below
    assert judge(stopping, 0.1, 0.0, epoch=8) == [None, None]  # the end is no rung


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_hint_epochs_are_no_rungs(scheduler):
    """Untrained classifiers neither stop a trial nor are stopped; from then on they compare."""
    stopping = make_stopping(scheduler, 8, 2, 2)
    for number in range(5):
        propose(stopping, f"at-A-{number}", ("at", "A"), hint_epochs=2)
    propose(stopping, "at-A-5", ("at", "A"), hint_epochs=0)
    assert judge(stopping, 0.0, 0.3, 0.3, 0.3, 0.3, 0.1, epoch=2) == [None] * 6
    missed = judge(stopping, 0.3, 0.3, 0.3, 0.3, 0.3, 0.1, epoch=4)
    assert missed == [None] * 5 + [Threshold(4, 0.3, 5)]


def test_asha_stops_early_what_has_learned_next_to_nothing():
    """At half of the grace period, the median of 0.5, 0.1, 0.6, 0.7 and 0.31 is 0.5."""
    stopping = make_stopping("asha", 8, 4, 2)
    missed = judge(stopping, 0.5, 0.1, 0.6, 0.7, 0.31, 0.24, epoch=2)
    assert missed[:5] == [None] * 5  # two trials before the second one are too few
    assert missed[5] == Threshold(2, pytest.approx(0.25), 5)
    assert "after epochs 4, and after 2 what is below half" in stopping.describe_rule()
    for scheduler in ("hyperband", "none"):
        others = make_stopping(scheduler, 8, 4, 2)
        assert judge(others, 0.5, 0.6, 0.7, 0.1, epoch=2) == [None] * 4
    assert "half of their median" not in make_stopping("asha", 8, 1, 2).describe_rule()
    without_rungs = make_stopping("asha", 8, 8, 2)
    assert judge(without_rungs, 0.5, 0.6, 0.7, 0.1, epoch=4) == [None] * 4
    assert without_rungs.describe_rule() == "asha never stops a trial: its first rung is the end"


def test_cells_are_judged_apart():
    stopping = make_stopping("asha", 8, 1, 2)
    assert judge(stopping, 0.9, 0.8, epoch=1)[1] is not None
    assert judge(stopping, 0.1, 0.2, epoch=1, cell=("kd", "A")) == [None, None]


def test_the_best_share_of_trials_continues():
    stopping = make_stopping("asha", 100, 1, 4)
    rising = judge(stopping, *[n / 100 for n in range(80)], epoch=1)
    assert rising == [None] * 80  # each is the best so far
    stopping = make_stopping("asha", 100, 1, 4)
    shuffled = [(37 * n % 81) / 81 for n in range(81)]
    kept = sum(cut is None for cut in judge(stopping, *shuffled, epoch=1))
    assert 0.2 * 81 < kept < 0.35 * 81


def test_median_judges_after_every_epoch_and_waits_for_others():
    stopping = make_stopping("median", 6, 2, 2)
    assert judge(stopping, 0.5, 0.6, 0.7, 0.8, 0.1, epoch=1) == [None] * 5
    assert judge(stopping, 0.5, 0.6, 0.7, 0.8, 0.64, epoch=3) == [
        *[None] * 4,
        Threshold(3, pytest.approx(0.65), 4),
    ]


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median"])
def test_repeats_are_neither_compared_nor_stopped(scheduler):
    cell, stopping = ("at", "A"), make_stopping(scheduler, 8, 1, 2)
    judge(stopping, 0.5, 0.5, 0.5, 0.5, epoch=1)
    for repeat in ("worst", "best"):
        propose(stopping, repeat, cell, candidate="at-A-0")
    for epoch in range(1, 8):
        assert report(stopping, "worst", cell, epoch, 0.0) is None
        assert report(stopping, "best", cell, epoch, 0.9) is None
        last = EpochFinished(
            trial_id="worst", method="at", model="A", **dict(make_metrics(epoch, 0))
        )
        assert stopping.decide(last) is None
    last = last.model_copy(update={"epoch": 8})
    assert stopping.decide(last) == (TrialState.FINISHED, "all 8 epochs")
    others = make_stopping(scheduler, 8, 1, 2)
    judge(others, 0.5, 0.5, 0.5, 0.5, epoch=1)
    assert judge(stopping, *[0.5] * 4, 0.45, epoch=1) == judge(others, *[0.5] * 4, 0.45, epoch=1)


def test_none_stops_no_trial():
    assert judge(make_stopping("none", 6, 1, 2), 0.9, 0.8, 0.0, epoch=1) == [None] * 3


def test_hyperband_gives_brackets_the_same_epochs():
    stopping = make_stopping("hyperband", 8, 2, 2)
    assert stopping.brackets == [(2, 4), (4,), ()]
    spent = [0, 0, 0]
    for number in range(60):
        trial = str(number), ("at", "A")
        propose(stopping, *trial)
        for epoch in range(1, 9):
            missed = report(stopping, *trial, epoch, (37 * number % 61) / 61)
            spent[stopping.bracket_of[str(number)]] += 1
            if missed:
                break
    assert max(spent) - min(spent) <= 8


def test_observations_of_an_earlier_sweep_count():
    stopping = make_stopping("asha", 8, 1, 2)
    observation = Observation(
        trial_id="old", params={}, distributions={}, state=TrialState.FINISHED,
        best_validation_accuracies=(0.5, 0.6),
    )  # fmt: skip
    stopping.fold(
        WarmStart(
            method="at", model="A", source="s", observations=(observation,), start=(), reason=""
        )
    )
    assert judge(stopping, 0.4, epoch=1) == [Threshold(1, 0.5, 1)]


@pytest.mark.parametrize(
    ("given", "rungs"),
    [
        ((9, 1, 3), (1, 3)),
        ((10, 1, 3), (1, 3, 9)),
        ((8, 8, 2), ()),
        ((243, 1, 3), (1, 3, 9, 27, 81)),
    ],
)
def test_rungs_are_before_the_end(given, rungs):
    assert rung_epochs(*given) == rungs


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        ("asha", "asha stops what is below 50 % of the others after epochs 2 and 4"),
        ("hyperband", "hyperband, in 3 brackets, stops what is below 50 % of the others"),
        ("median", "median stops what is below 50 % of the others from epoch 2 on"),
        ("none", "no trial is stopped early"),
    ],
)
def test_a_rule_is_described(scheduler, said):
    assert make_stopping(scheduler, 8, 2, 2).describe_rule().startswith(said)
