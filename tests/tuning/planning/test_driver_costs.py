"""Costs of the driver."""

from dataclasses import replace
from inspect import signature
from types import SimpleNamespace

import pytest
from optuna.samplers import TPESampler
from sweep_harness import sweep_config

from kdtune.tuning.planning.driver_costs import count_startup_trials
from kdtune.tuning.search import gp_sampler
from kdtune.tuning.search.samplers import choose_sampler
from kdtune.tuning.search.space import load_spaces


@pytest.mark.parametrize("is_function", [False, True])
def test_proposals_cost_nothing_until_the_sampler_learns(is_function):
    space = replace(load_spaces()["at"], define_by_run=(lambda trial: {}) if is_function else None)
    tpe_needs = signature(TPESampler).parameters["n_startup_trials"].default
    needs = {"gp": gp_sampler.STARTUP_TRIALS, "tpe": tpe_needs, "random": 0, "mine.Sampler": 0}
    needs["auto"] = needs[choose_sampler(space)]
    for sampler, trials in needs.items():
        sweep = SimpleNamespace(sampler=sampler, cells=sweep_config().cells)
        assert count_startup_trials(SimpleNamespace(sweep=sweep, spaces={"at": space})) == trials
