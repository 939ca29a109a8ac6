"""Completed trials of a cell, as a study has them."""

import numpy as np
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

LR = {"lr": FloatDistribution(0, 1)}


def make_trial(value, trial_id="at-A-000", **params):
    """Return a finished trial with these settings, each between 0 and 1."""
    attributes = {"trial_id": trial_id, "first_trial_id": trial_id, "finished": True}
    distributions = {name: FloatDistribution(0, 1) for name in params}
    trial = {"params": params, "distributions": distributions, "user_attrs": attributes}
    return create_trial(value=value, **trial)


def make_trials(function, count=12, seed=0):
    """Return trials at random lr with the values of a function, and a little noise."""
    rng = np.random.default_rng(seed)
    return [
        make_trial(function(x) + rng.normal(0, 0.005), f"at-A-{i:03d}", lr=x)
        for i, x in enumerate(rng.random(count))
    ]


def peak_at(center):
    """Return a function with a maximum of 0.9."""
    return lambda x: 0.9 - 0.5 * (x - center) ** 2
