"""Wherever the log of a search ends, its resume decides what the search would have decided."""

import pytest
from log_prefixes import find_wrong_prefixes
from sweep_harness import SWEEP_OPENING, SweepHarness, sweep_config

from kdtune.log.events import TrialEnded, TrialProposed, TrialRestarted
from kdtune.log.folder import SweepFolder
from kdtune.tuning.scheduling.search_policy import SearchPolicy
from kdtune.tuning.search.space import load_spaces
from kdtune.tuning.trials.results import Failure, TrialFailed

SPACES = load_spaces()


class TroubledSearch(SweepHarness):
    """A search in which a process dies, and a trial diverges."""

    def train(self, trial, curve):
        match trial.config["trial_id"]:
            case "at-A-000" as trial_id if not self.active_trials.by_id[trial_id].restarts:
                self.report(trial, 1, curve[0])
                self.scheduler.on_trial_error(None, trial)
            case "at-A-001":
                self.report_result(trial, TrialFailed(failure=Failure.DIVERGED, reason="nan"))
            case _:
                super().train(trial, curve)


def make_policy(**changes):
    return SearchPolicy(sweep_config(**changes), SPACES, SweepHarness.configure_trial)


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": "tpe", "trials": 3, "epochs": 4},
        {"sampler": "cmaes", "trials": 4, "methods": "at", "scheduler": "hyperband"},
        {"sampler": "gp", "trials": 5, "methods": "at", "epochs": 2},
        {"sampler": "random", "trials": 10, "methods": "at", "epochs": 2, "repeat_share": 0.5},
        {"sampler": "random", "trials": 9, "total_epochs": 40, "balance_by": "epochs"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_every_prefix_is_continued_as_it_was(tmp_path, settings):
    """The state of cmaes is not in the log; the others make each proposal anew."""
    path = tmp_path / "log.jsonl"
    search = TroubledSearch(path, **settings)
    search.append(SWEEP_OPENING)
    search.run()
    events = SweepFolder(tmp_path).load_events()
    assert {"finished", "diverged"} <= {e.state for e in events if isinstance(e, TrialEnded)}
    assert any(isinstance(event, TrialRestarted) for event in events)
    repeats = [e for e in events if isinstance(e, TrialProposed) and e.is_repeat]
    assert bool(repeats) is ("repeat_share" in settings)
    assert find_wrong_prefixes(path, lambda: make_policy(**settings)) == []


def test_a_search_that_decides_otherwise_is_found(tmp_path):
    path = tmp_path / "log.jsonl"
    search = SweepHarness(path, trials=2)
    search.append(SWEEP_OPENING)
    search.run()
    last = len(SweepFolder(tmp_path).load_events())
    wrong = find_wrong_prefixes(path, lambda: make_policy(trials=2, scheduler="none"))
    assert wrong and last not in wrong
