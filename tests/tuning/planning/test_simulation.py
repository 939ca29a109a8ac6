"""A sweep in simulated time, by hand."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from sweep_harness import SweepHarness, sweep_config

from kdtune.errors import UserError
from kdtune.log.events import TrialProposed
from kdtune.tuning.planning.plan import Planner
from kdtune.tuning.planning.recorded_curves import RecordedCurves
from kdtune.tuning.planning.simulation import Simulation, SweepCosts
from kdtune.tuning.planning.synthetic_curves import SyntheticCurves
from kdtune.tuning.scheduling.search_policy import SearchPolicy
from kdtune.tuning.search.space import load_spaces

SPACES = load_spaces()


class Given:
    """Curves that are given: by the number of the trial, or the same for all."""

    def __init__(self, *curves):
        self.curves = curves

    def draw_curve(self, proposal):
        return self.curves[proposal.number % len(self.curves)]


def run(slots, costs, curves, seed=0, **given):
    small = {"methods": "at", "models": "A", "sampler": "random", "scheduler": "none"}
    sweep = sweep_config(**{**small, **given})

    def make(clock):
        return SearchPolicy(sweep, SPACES, SweepHarness.configure_trial, clock)

    return Simulation(make, costs, curves, slots, seed).run()


FLAT = Given([0.5] * 4)


def test_three_trials_in_two_slots():
    got = run(2, SweepCosts({"at-A": 10.0}), FLAT, trials=3, epochs=4)
    assert (got.wall_seconds, got.training_seconds, got.epochs, got.trials) == (80, 120, 12, 3)
    assert got.idle_share == pytest.approx(1 / 4)  # a slot has nothing to do from 40 s on
    assert (
        got.unused_seconds,
        got.waiting_seconds,
        got.startup_seconds,
        got.saved_epochs,
        got.max_running,
    ) == (40, 0, 0, 0, 2)


def test_processes_start_once_and_trials_start_each_time():
    costs = SweepCosts(
        {"at-A": 10.0},
        process_start_seconds=5.0,
        trial_start_seconds={"at-A": 1.0},
        tables_seconds=2.0,
    )
    got = run(1, costs, FLAT, trials=2, epochs=4)
    assert got.wall_seconds == 5 + 2 * (1 + 40) + 2
    assert (got.startup_seconds, got.driver_seconds) == (7, 2)


def test_a_checkpoint_takes_a_fiftieth_of_an_epoch_at_most_and_its_time_at_the_end():
    got = run(
        1, SweepCosts({"at-A": 10.0}, checkpoint_seconds={"at-A": 1.0}), FLAT, trials=1, epochs=4
    )
    assert got.wall_seconds == pytest.approx(4 * 10.2 + 1)


def test_the_driver_takes_one_event_at_a_time():
    """Four slots send an epoch each second; the driver needs half a second for one of them."""
    costs = SweepCosts({"at-A": 1.0}, event_seconds=0.5)
    got = run(4, costs, FLAT, trials=4, epochs=4)
    assert got.wall_seconds == 1 + 16 * 0.5  # it is busy from the first result to the last
    assert got.driver_seconds == 8
    assert got.waiting_seconds == 4 * got.wall_seconds - got.training_seconds - got.unused_seconds
    assert run(1, costs, FLAT, trials=4, epochs=4).wall_seconds == 16 * 1.5


def test_proposals_take_time_once_enough_trials_have_ended():
    costs = SweepCosts({"at-A": 1.0}, proposal_seconds=2.0)
    assert run(1, costs, FLAT, trials=3, epochs=4).wall_seconds == 3 * (2 + 4)
    assert run(1, replace(costs, startup_trials=2), FLAT, trials=3, epochs=4).wall_seconds == 14
    # Of many at once, none has ended yet from which a sampler could learn.
    assert run(3, replace(costs, startup_trials=1), FLAT, trials=3, epochs=4).wall_seconds == 4


def test_stopping_saves_what_it_should():
    """The first trial goes on at epoch 2, and the two worse ones end there."""
    curves = Given([0.9] * 4, [0.5] * 4, [0.4] * 4)
    rule = {"scheduler": "asha", "grace_period": 2, "reduction_factor": 2}
    got = run(1, SweepCosts({"at-A": 1.0}), curves, trials=3, epochs=4, **rule)
    assert (got.stopped, got.saved_epochs, got.epochs, got.wall_seconds) == (2, 4, 8, 8)


def test_trials_wait_for_a_view_that_one_of_them_builds():
    got = run(
        2, SweepCosts({"at-A": 1.0}, view_seconds=10.0, num_views=3), FLAT, trials=2, epochs=4
    )
    assert got.wall_seconds == 4 + 2 * 10  # the fourth epoch sees the first view again
    assert got.startup_seconds == 2 * 2 * 10


def test_limits_are_kept():
    got = run(2, SweepCosts({"at-A": 10.0}), FLAT, trials=None, epochs=4, total_epochs=10)
    assert (got.epochs, got.saved_epochs, got.stopped) == (
        10,
        0,
        0,
    )  # a budget's end saves nothing
    got = run(2, SweepCosts({"at-A": 10.0}), FLAT, trials=None, epochs=4, time_budget=75)
    assert (got.wall_seconds, got.epochs, got.saved_epochs, got.stopped) == (80, 16, 0, 0)


@pytest.mark.parametrize("limit", [{"trials": 100}, {"trials": None, "total_epochs": 1000}])
def test_of_a_large_sweep_a_part_is_simulated_that_still_fills_all_slots(monkeypatch, limit):
    monkeypatch.setattr("kdtune.tuning.planning.plan.MAX_SIMULATED_EPOCHS", 1)
    small = {"methods": "at", "models": "A", "sampler": "random", "scheduler": "none", "epochs": 4}
    sweep = sweep_config(**small, **limit)
    configure = SweepHarness.configure_trial
    checked = SimpleNamespace(
        sweep=sweep, spaces=SPACES, configure_trial=configure, warm_start_events=()
    )
    outcome, part = Planner(checked, FLAT).simulate("random", SweepCosts({"at-A": 10.0}), 5)
    epochs = limit.get("total_epochs", 400)
    assert part == epochs / (5 * 5 * 4)
    assert (outcome.epochs, outcome.wall_seconds) == (epochs, epochs / 5 * 10)


def test_more_slots_than_trials_are_of_no_use():
    costs = SweepCosts({"at-A": 10.0})
    few, many = (run(n, costs, FLAT, trials=3, epochs=4) for n in (3, 1000))
    assert few.wall_seconds == many.wall_seconds == 40
    assert many.max_running == 3 and many.idle_share == pytest.approx(1 - 3 / 1000)


def test_the_same_seed_gives_the_same_numbers():
    costs = SweepCosts({"at-A": 1.0, "kd-A": 2.0}, epoch_relative_sd=0.1)
    given = {"methods": "at,kd", "scheduler": "asha", "trials": 8, "epochs": 9}

    def plan(seed):
        return run(3, costs, SyntheticCurves(9, seed), seed, grace_period=1, **given)

    assert plan(1) == plan(1)
    assert plan(1).wall_seconds != plan(2).wall_seconds


LR = {
    "name": "FloatDistribution",
    "attributes": {"low": 1e-3, "high": 0.3, "log": True, "step": None},
}


def propose(number=0, model="A", distributions=(), **params):
    return TrialProposed(
        trial_id=f"t-{number}", method="at", model=model, number=number, origin="sampler",
        params=params, distributions={"lr": LR, **dict(distributions)}, config={},
    )  # fmt: skip


def test_synthetic_curves_rise_and_depend_on_the_settings():
    synthetic, ends = SyntheticCurves(20, 0), []
    for number, lr in enumerate([1e-3, 1e-2, 0.1, 0.3]):
        curve = synthetic.draw_curve(propose(number, lr=lr))
        assert len(curve) == 20 and all(0 <= value <= 1 for value in curve)
        assert curve[-1] > curve[0]
        ends.append(curve[-1])
    assert max(ends) - min(ends) > 0.1


def test_recorded_curves_are_those_of_the_nearest_settings(tmp_path):
    path = tmp_path / "curves.jsonl"
    row = '{"method": "at", "model": "A", "settings": {"lr": %s}, "validation_accuracy": [%s]}\n'
    path.write_text(row % (0.001, "0.1, 0.3") + row % (0.2, "0.5, 0.7"))
    recorded = RecordedCurves(path, 3, Given([0.0]))
    assert recorded.draw_curve(propose(lr=0.1)) == pytest.approx([0.5, 0.6, 0.7])
    assert recorded.draw_curve(propose(lr=0.002)) == pytest.approx([0.1, 0.2, 0.3])
    assert recorded.draw_curve(propose(model="B", lr=0.1)) == [0.0]
    choice = {"name": "CategoricalDistribution", "attributes": {"choices": ["b", "c"]}}
    proposal = propose(distributions={"form": choice}, lr=0.1, form="b")
    form = row.replace('"lr": %s', '"lr": 0.1, "form": "%s"')
    path.write_text(form % ("gone", "0.1, 0.3") + form % ("b", "0.5, 0.7"))
    assert RecordedCurves(path, 2, Given([0.0])).draw_curve(proposal) == pytest.approx([0.5, 0.7])
    path.write_text("no JSON")
    for wrong in (path, Path("nowhere")):
        with pytest.raises(UserError, match="no recorded curves"):
            RecordedCurves(wrong, 3, recorded)
