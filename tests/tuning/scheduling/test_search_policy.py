"""Proposals of a search: strengths become weights, in the log and after a restart."""

from sweep_harness import SWEEP_OPENING, SweepHarness

from kdtune.config.train import TrainConfig
from kdtune.log.events import TrialProposed
from kdtune.log.folder import SweepFolder

SCALES = {"alpha": 0.5, "beta": 0.004}


def measured(path, scales=SCALES):
    harness = SweepHarness(path / "log.jsonl", models="A", methods="at")
    harness.policy.measure_scales = lambda cell, settings: scales
    return harness


def test_a_trial_has_the_weight_of_its_strength_and_the_log_says_both(tmp_path):
    harness = measured(tmp_path)
    harness.append(SWEEP_OPENING)
    trial = harness.suggest()
    assert trial.config["config"]["beta"] == 1.0 / 0.004
    assert trial.config["config"]["alpha"] == 3.0 / 0.5
    [event] = [e for e in SweepFolder(tmp_path).load_events() if isinstance(e, TrialProposed)]
    assert event.params["beta_strength"] == 1.0 and "beta" not in event.params
    assert event.config["beta"] == 250.0 and event.loss_scales == SCALES
    assert TrainConfig.parse(event.config).beta == 250.0  # what is exported and trained again


def test_a_weight_has_six_digits(tmp_path):
    harness = measured(tmp_path, {"beta": 0.0123})
    harness.append(SWEEP_OPENING)
    config = harness.suggest().config["config"]
    assert config["beta"] == 81.3008
    assert config["alpha"] == 3.0  # without a scale it is the strength itself


def test_a_sweep_that_resumes_proposes_the_same_weights(tmp_path):
    undisturbed, interrupted = tmp_path / "a", tmp_path / "b"
    for path in (undisturbed, interrupted):
        path.mkdir()
        harness = measured(path)
        harness.append(SWEEP_OPENING)
        if path == interrupted:
            harness.train(harness.suggest(), [0.1] * 9)
            harness = measured(path)
        else:
            harness.train(harness.suggest(), [0.1] * 9)
        harness.run()
    proposals = [
        [(e.params, e.config) for e in SweepFolder(path).load_events() if "trial_pro" in e.kind]
        for path in (undisturbed, interrupted)
    ]
    assert len(proposals[0]) == 6 and proposals[0] == proposals[1]
    for params, config in proposals[0]:
        assert config["beta"] == float(f"{params['beta_strength'] / 0.004:.6g}")
