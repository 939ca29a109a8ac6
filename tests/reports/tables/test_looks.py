"""Looks: boundaries of published tables, and false alarms over all looks by simulation."""

import numpy as np
import pytest
from event_logs import OPENING_FIELDS
from report_sweeps import run_tested
from scipy.stats import norm

from kdtune.log.events import ConfirmStarted, SeedsAdded
from kdtune.reports.tables.looks import later_looks, looks_by_cell, spend_levels
from kdtune.reports.tables.statistics import Estimate, estimate_mean


def at_look(seeds, of_a_seed=1.0, images=0.0, search=0.0):
    """Return the estimate of a look; the seed's variance is that of a single seed."""
    return Estimate(0.0, seeds, 1000, 0, 0, of_a_seed / seeds, images, search, 0.0)


def levels(*looks):
    return [estimate.level for estimate in spend_levels(looks)]


def test_one_look_at_all_seeds_spends_all():
    assert levels(at_look(20)) == pytest.approx([0.05])
    assert levels(at_look(30)) == pytest.approx([0.05])
    assert levels(at_look(5, of_a_seed=0, images=0.1)) == pytest.approx([0.05])


def test_two_looks_with_equal_steps_have_the_boundaries_of_the_tables():
    # Pocock-type spending, two-sided 5 %, information 1/2 and 1: 2.157 and 2.201.
    boundaries = norm.isf(np.array(levels(at_look(10), at_look(20))) / 2)
    assert boundaries == pytest.approx([2.157, 2.201], abs=5e-4)


@pytest.mark.parametrize(("images", "search"), [(0.0, 0.0), (0.05, 0.0), (0.2, 0.3)])
def test_false_alarms_over_all_looks_are_those_that_were_promised(images, search):
    looks = spend_levels([at_look(seeds, 1.0, images, search) for seeds in (5, 10, 20)])
    random, alarms = np.random.default_rng(0), np.zeros(20_000, dtype=bool)
    of_seeds = random.standard_normal((20_000, 20))
    shared = np.sqrt(images + search) * random.standard_normal(20_000)
    for look in looks:
        z = (of_seeds[:, : look.seeds].mean(axis=1) + shared) / np.sqrt(look.variance)
        alarms |= np.abs(z) > norm.isf(look.level / 2)
    assert alarms.mean() == pytest.approx(0.05, abs=0.005)


def test_images_and_search_that_do_not_shrink_let_the_first_look_spend_more():
    alone, shared = levels(at_look(5)), levels(at_look(5, images=1.0))
    assert alone[0] == pytest.approx(0.05 * np.log(1 + (np.e - 1) / 4))
    assert 0.04 < shared[0] < 0.05


def test_a_look_without_new_information_or_after_the_last_one_is_left_out():
    looks = spend_levels([at_look(seeds) for seeds in (5, 5, 10, 20, 30)])
    assert [look.seeds for look in looks] == [5, 10, 20]
    assert [look.seeds for look in spend_levels([at_look(25), at_look(30)])] == [25]
    fixed = [at_look(seeds, of_a_seed=0, images=1.0) for seeds in (5, 10)]
    assert [look.seeds for look in spend_levels(fixed)] == [5]


def test_what_earlier_looks_spent_does_not_depend_on_later_ones():
    looks = [at_look(5, 1.0, 0.1), at_look(10, 0.8, 0.12), at_look(20, 1.1, 0.09)]
    assert levels(*looks)[:2] == levels(*looks[:2])
    assert levels(*looks)[:1] == levels(looks[0])


def test_a_family_may_have_less_to_spend():
    [look] = spend_levels([at_look(20)], level=0.0125)
    assert look.level == pytest.approx(0.0125)


def test_false_alarms_of_growing_confirmations_are_rare():
    random, alarms = np.random.default_rng(4), 0
    for _ in range(400):
        images, own = random.standard_normal((200, 1)), random.standard_normal((2, 200, 1))
        run, seed = random.standard_normal((2, 200, 20)), random.standard_normal((2, 1, 20))
        a, b = images + 0.5 * own + 0.7 * run + 0.05 * seed < 0.9
        x = 100.0 * a - 100.0 * b
        looks = spend_levels([estimate_mean(x[:, :seeds]) for seeds in (5, 10, 20)])
        alarms += any(look.p_value < look.level for look in looks)
    assert alarms <= 0.05 * 400


def started(seeds):
    return ConfirmStarted(config={}, seeds=seeds, top=2, candidates=(), **OPENING_FIELDS)


def test_a_look_is_a_number_of_seeds_at_which_test_was_read():
    def looks_of(*events):
        return looks_by_cell(events).get(("at", "A"), ())

    tested = run_tested("at-A-000-seed1", 0.5)
    assert looks_of() == looks_of(started(5)) == looks_of(tested) == ()
    assert looks_of(started(5), tested, tested) == (5,)
    assert looks_of(started(3), started(5), tested, started(5), tested) == (5,)
    log = started(5), tested, started(10), started(12), tested, started(20)
    assert looks_of(*log) == (5, 12)


def test_cells_that_got_further_seeds_have_looks_of_their_own():
    added = SeedsAdded(cells=(("at", "A"),), seeds=10, reason="it is open")
    tested = [run_tested(f"{method}-A-000-seed1", 0.5) for method in ("at", "kd")]
    looks = looks_by_cell([started(5), *tested, added, *tested])
    assert looks == {("at", "A"): (5, 10), ("kd", "A"): (5,)}


def test_a_cell_that_is_compared_with_one_of_fewer_seeds_keeps_its_own():
    cells = ("at", "A"), ("kd", "A")
    tested = [run_tested(f"{method}-A-000-seed1", 0.5) for method, _ in cells]
    more = SeedsAdded(cells=cells[:1], seeds=20, reason="it is open")
    fewer = SeedsAdded(cells=cells, seeds=10, reason="it is open")
    looks = looks_by_cell([started(5), *tested, more, tested[0], fewer, *tested])
    assert looks == {cells[0]: (5, 20), cells[1]: (5, 10)}


def test_planned_looks_are_those_of_the_schedule():
    assert [later_looks(looks) for looks in ([3], [5], [5, 7], [20], [30])] == [3, 2, 2, 0, 0]
