"""A search in a script of Ray Tune's own: kdtune's trainable, with Ray's searcher and scheduler.

    python ray_tune.py --data DIR --teacher teacher.pth

Ray saves the search every ten seconds; the same command resumes one that was killed.
"""

import argparse
from pathlib import Path

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

import search_spaces.at as at
from kdtune import load_model, trainable

METRIC, MODE = "best_validation_accuracy", "max"


def make_tuner(args: argparse.Namespace) -> tune.Tuner:
    """Return a tuner that starts a search, or resumes the one in the same folder."""
    trial = tune.with_resources(trainable, {"cpu": args.cpus, "gpu": args.gpus})
    folder = Path(args.out).resolve()
    saved = [*folder.glob("search_gen_state-*.json")]  # Ray resumes only with it
    if saved and tune.Tuner.can_restore(str(folder)):
        return tune.Tuner.restore(str(folder), trial)
    param_space = {
        **at.SPACE,
        "method": at.METHOD,
        "model": args.model,
        "data_dir": args.data,
        "teacher_model": args.teacher,
        "image_size": args.image_size,
        "epochs": args.epochs,
    }
    tune_config = tune.TuneConfig(
        metric=METRIC,
        mode=MODE,
        num_samples=args.trials,
        max_concurrent_trials=args.concurrent,
        search_alg=OptunaSearch(points_to_evaluate=at.START, seed=0),
        scheduler=ASHAScheduler(max_t=args.epochs, grace_period=-(-args.epochs // 2)),
    )
    run_config = tune.RunConfig(
        name=folder.name,
        storage_path=str(folder.parent),
        checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
    )
    return tune.Tuner(
        trial, param_space=param_space, tune_config=tune_config, run_config=run_config
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--model", default="MultiBranchNet")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--concurrent", type=int, default=2)
    parser.add_argument("--cpus", type=float, default=1)
    parser.add_argument("--gpus", type=float, default=0)
    parser.add_argument("--out", default="ray-tune")
    args = parser.parse_args()
    ray.init(include_dashboard=False)
    results = make_tuner(args).fit()
    best = results.get_best_result(METRIC, MODE)
    print(f"{len(results)} trials; the best: {best.metrics[METRIC]:.4f}")
    for name in (*at.SPACE, "alpha", "beta"):
        print(f"  {name}: {best.config.get(name, best.metrics.get(name))}")
    if best.checkpoint is not None:
        student = load_model(Path(best.checkpoint.path) / "student.pth")
        print(f"its last epoch is {student['epoch']}, in {best.checkpoint.path}")


if __name__ == "__main__":
    main()
