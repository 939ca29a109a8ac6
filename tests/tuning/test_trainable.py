"""The trainable for a Tuner of one's own, with Ray's searcher, scheduler and restore."""

import os

import pytest
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from small_runs import IMAGE_SIZE

from kdtune import load_model, trainable
from kdtune.config.train import TrainConfig
from kdtune.training.run import run_training
from search_spaces import at

FIXED = {"image_size": IMAGE_SIZE, "batch_size": 16, "epochs": 2, "device": "cpu"}


def dying_trainable(marker):
    """A trainable that loses its process after one epoch, once; Ray pickles it by value."""

    def run(config):
        report = tune.report

        def report_and_die(metrics, checkpoint=None):
            report(metrics, checkpoint=checkpoint)
            if metrics["epoch"] == 1 and not os.path.exists(marker):
                open(marker, "w").close()
                os._exit(1)

        tune.report = report_and_die
        trainable(config)

    return run


@pytest.mark.slow
def test_trials_of_ray_resume_and_have_the_numbers_of_single_runs(
    ray_session, folder, teacher_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    marker = str(tmp_path / "died")
    fixed = {**FIXED, "data_dir": str(folder), "teacher_model": str(teacher_file)}
    tuner = tune.Tuner(
        dying_trainable(marker),
        param_space={**at.SPACE, **fixed, "method": at.METHOD},
        tune_config=tune.TuneConfig(
            metric="validation_accuracy",
            mode="max",
            num_samples=2,
            max_concurrent_trials=1,
            search_alg=OptunaSearch(points_to_evaluate=at.START, seed=0),
            scheduler=ASHAScheduler(max_t=2, grace_period=2),
        ),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path / "ray"),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )
    results = tuner.fit()
    assert os.path.exists(marker) and not results.errors
    assert {key: results[0].config[key] for key in at.START[0]} == at.START[0]
    for i, result in enumerate(results):
        weights = {key: result.metrics[key] for key in ("alpha", "beta")}
        searched = {key: result.config[key] for key in ("lr", "weight_decay", "temperature")}
        settings = {"method": "at", "experiment_name": f"run-{i}", **fixed, **searched, **weights}
        run = run_training(TrainConfig.parse(settings))
        reported = result.metrics_dataframe
        for key in ("epoch", "train_loss", "validation_accuracy", "loss_at"):
            assert [*reported[key]] == [row[key] for row in run["training_history"]]
        saved = load_model(result.checkpoint.path + "/student.pth")
        assert saved["epoch"] == 2 and saved["config"]["beta"] == weights["beta"]


@pytest.mark.slow
def test_a_strength_is_the_term_over_the_classification_loss(
    ray_session, folder, teacher_file, tmp_path
):
    """Twice the strength is twice the weight; without a teacher it has no effect."""
    tuner = tune.Tuner(
        trainable,
        param_space={
            **FIXED, "data_dir": str(folder), "method": "kd", "epochs": 1,
            "teacher_model": tune.grid_search([str(teacher_file), None]),
            "alpha_strength": tune.grid_search([1.0, 2.0]),
        },
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    )  # fmt: skip
    found = {
        tuple(result.config[key] for key in ("teacher_model", "alpha_strength")): result.metrics
        for result in tuner.fit()
    }
    low, high = (found[str(teacher_file), strength]["alpha"] for strength in (1.0, 2.0))
    assert high == pytest.approx(2 * low, rel=1e-5) and low != 1.0
    assert [found[None, strength]["alpha"] for strength in (1.0, 2.0)] == [1.0, 2.0]
