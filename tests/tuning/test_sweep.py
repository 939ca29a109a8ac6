"""Real sweeps: on Ray, with real processes."""

import re
from collections import Counter
from contextlib import chdir
from pathlib import Path

import pandas as pd
import pytest
import torch
import torchvision
from optuna.trial import TrialState as OptunaState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kdtune.at import train_at
from kdtune.config.sweep import SweepConfig
from kdtune.data.folders import find_images
from kdtune.errors import UserError
from kdtune.log.event_log import EventLog
from kdtune.log.events import CacheUpdated, EpochFinished, TrialEnded, TrialProposed, WarmStart
from kdtune.log.folder import SweepFolder
from kdtune.log.stopwatch import Stopwatch
from kdtune.log.trial_history import TrialHistory
from kdtune.models.checkpoints import load_model
from kdtune.training.rerun import train_from_file
from kdtune.tuning.display.screen import Screen
from kdtune.tuning.driver.driver import Workplace
from kdtune.tuning.driver.preflight import prepare_sweep
from kdtune.tuning.search.space import load_spaces
from kdtune.tuning.search.studies import CellStudies
from kdtune.tuning.sweep import run_sweep

SPACE = '''"""Student, with a setting that diverges among its start points."""
from ray import tune
METHOD = "student"
SPACE = {"lr": tune.loguniform(1e-3, 1e30)}
START = [{"lr": 1e30}, {"lr": 0.05}, {"lr": 0.02}]
'''


def of_kind(sweep, kind):
    return [event for event in sweep.load_events() if isinstance(event, kind)]


def scalars_of(folder, name):
    """Return the steps at which TensorBoard has a scalar."""
    return [scalar.step for scalar in EventAccumulator(str(folder)).Reload().Scalars(name)]


@pytest.fixture(scope="module")
def small_sweep(ray_session, folder, teacher_file, tmp_path_factory):
    """Two cells of three trials on 200 digits; one setting diverges."""
    place = tmp_path_factory.mktemp("sweep")
    (place / "space.py").write_text(SPACE)
    with chdir(place):
        sweep = run_sweep(
            {
                "name": "small", "data": str(folder), "teacher": str(teacher_file),
                "methods": ["at", "student"], "models": ["MultiBranchNet"], "baselines": False,
                "spaces": ["space.py"], "trials": 3, "epochs": 4, "grace_period": 1,
                "gpus_per_trial": "auto",
                "settings": {"batch_size": 16},
            }
        )  # fmt: skip
    return SweepFolder(place / sweep.path)


@pytest.mark.slow
class TestSmallSweep:
    def test_every_cell_has_a_row_and_every_trial_an_end(self, small_sweep):
        board = pd.read_csv(small_sweep.path / "leaderboard.csv")
        assert set(board.method) == {"at", "student"}
        assert board.trials_started.tolist() == [3, 3]
        trials = pd.read_parquet(small_sweep.path / "trials.parquet")
        proposed = of_kind(small_sweep, TrialProposed)
        assert trials.trial_id.tolist() == [event.trial_id for event in proposed]
        assert set(trials.state) <= {"finished", "stopped", "diverged"}

    def test_a_diverged_trial_says_when_and_the_sweep_goes_on(self, small_sweep):
        trials = pd.read_csv(small_sweep.path / "trials.csv").set_index("trial_id")
        assert trials.loc["student-MultiBranchNet-000"].state == "diverged"
        assert "loss became" in trials.loc["student-MultiBranchNet-000"].reason
        assert "finished" in set(trials.state)

    def test_the_log_alone_gives_studies_without_a_running_trial(self, small_sweep):
        spaces = load_spaces((str(small_sweep.path.parent.parent / "space.py"),))
        config = SweepConfig.parse(small_sweep.load_events()[0].config)
        studies = CellStudies(config, spaces)
        with EventLog(small_sweep.log_path, [studies.fold]):
            pass
        told = [t for study in studies.by_cell.values() for t in study.trials]
        assert [t.state for t in told] == 6 * [OptunaState.COMPLETE]
        values = {t.user_attrs["trial_id"]: t.value for t in told}
        trials = pd.read_csv(small_sweep.path / "trials.csv").set_index("trial_id")
        finished = trials[trials.state == "finished"].best_validation_accuracy
        assert len(finished) and values | finished.to_dict() == values

    def test_the_tables_can_be_made_again_from_the_log(self, small_sweep):
        made = [small_sweep.path / "leaderboard.csv", small_sweep.path / "trials.csv"]
        made += sorted((small_sweep.path / "best").glob("*.yaml"))
        before = [path.read_bytes() for path in made]
        for path in made:
            path.unlink()
        Workplace(small_sweep, Screen("quiet"), "kdtune resume").write_results()
        assert [path.read_bytes() for path in made] == before

    @pytest.mark.parametrize("method", ["at", "student"])
    def test_a_best_configuration_runs_again_to_the_same_number(
        self, small_sweep, method, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        result = train_from_file(small_sweep.best_path(method, "MultiBranchNet"))
        assert result["best_accuracy"] == result["recorded_accuracy"]

    def test_a_trial_is_what_train_at_does_with_its_settings(
        self, small_sweep, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        trial = TrialHistory(small_sweep.load_events()).trials["at-MultiBranchNet-001"]
        history = train_at(trial.proposed.config)["training_history"]
        rows = [epoch.as_row() for epoch in trial.epochs]
        keys = [key for key in history[0] if key != "seconds"]
        assert rows and [[row[key] for key in keys] for row in rows] == [
            [row[key] for key in keys] for row in history[: len(rows)]
        ]

    def test_one_pass_of_the_teacher_served_all_trials(self, small_sweep):
        cache = small_sweep.load_events()[0].cache
        assert cache.methods == ("at",) and cache.augment_views == 0
        prepared = cache.prepared  # without what earlier tests have open
        assert prepared[-1].content == "targets" and prepared[-1].state in ("built", "cached")
        assert 0 < sum(arrays.num_bytes for arrays in prepared) <= cache.num_bytes
        assert not of_kind(small_sweep, CacheUpdated)

    def test_tensorboard_has_every_trial_with_all_its_epochs(self, small_sweep):
        logged = Counter(event.trial_id for event in of_kind(small_sweep, EpochFinished))
        proposed = {event.trial_id for event in of_kind(small_sweep, TrialProposed)}
        assert {path.name for path in small_sweep.tensorboard_folder.iterdir()} == proposed
        for trial_id, epochs in logged.items():
            steps = scalars_of(small_sweep.tensorboard_folder / trial_id, "train_loss")
            assert steps == list(range(1, epochs + 1))

    def test_the_best_networks_are_there_and_no_checkpoint_else(self, small_sweep):
        board = pd.read_csv(small_sweep.path / "leaderboard.csv").set_index("method")
        for method in ("at", "student"):
            loaded = load_model(small_sweep.best_path(method, "MultiBranchNet", ".pth"))
            assert loaded["trial_id"] == board.loc[method].trial_id
            assert 100 * loaded["validation_accuracy"] == board.loc[method].search_best_percent
        assert not list(small_sweep.checkpoints_folder.iterdir())

    def test_a_folder_that_exists_is_left_alone(self, small_sweep, monkeypatch):
        monkeypatch.chdir(small_sweep.path.parent.parent)
        before = small_sweep.log_path.read_bytes()
        with pytest.raises(UserError, match=r"results/small already exists"):
            run_sweep({"name": "small", "data": "digits"})
        assert small_sweep.log_path.read_bytes() == before

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"gpus_per_trial": 0.5}, "is 0.5 for MultiBranchNet, but Ray has no GPU here"),
            (
                {"cpus_per_trial": "ResNet18=64"},
                "is 64 for ResNet18, but Ray has no node with more than 2 CPUs here",
            ),
            (
                {"cpus_per_trial": {"Resnet18": 1}},
                "cpus_per_trial names 'Resnet18', which is not a student of this sweep; did",
            ),
        ],
    )
    def test_resources_that_are_not_here(
        self, ray_session, settings, sentence, folder, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        sweep = {"name": "x", "data": str(folder), "methods": ["student"], "baselines": False}
        with pytest.raises(UserError, match=sentence):
            run_sweep({**sweep, **settings})
        assert list(tmp_path.iterdir()) == []


def test_a_teacher_that_others_saved_is_as_good(folder, tmp_path):
    torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), tmp_path / "theirs.pth")
    settings = {"name": "x", "data": str(folder), "teacher": str(tmp_path / "theirs.pth")}
    prepared = prepare_sweep(SweepConfig.parse({**settings, "image_size": 32}), ())
    assert prepared.sweep.image_size == 32
    assert prepared.opening_event.teacher.model == "ResNet18"
    # The file does not say its own.
    assert prepare_sweep(SweepConfig.parse(settings), ()).sweep.image_size == 128


@pytest.mark.slow
def test_trials_build_augmented_views_and_a_trial_is_reproduced(
    ray_session, folder, teacher_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    sweep = {
        "name": "x", "data": str(folder), "teacher": str(teacher_file), "methods": ["kd"],
        "models": ["MultiBranchNet"], "baselines": False, "trials": 2, "epochs": 3, "seed": 7,
        "grace_period": 3, "settings": {"batch_size": 16, "augment": True},
    }  # fmt: skip
    sweep_folder = run_sweep(sweep)
    assert sweep_folder.load_events()[0].cache.augment_views == 3
    configs = [event.config for event in of_kind(sweep_folder, TrialProposed)]
    assert {(c["augment_views"], c["augment_seed"]) for c in configs} == {(3, 7)}
    progress = [event.progress for event in of_kind(sweep_folder, CacheUpdated)]
    built = [arrays.label for arrays in progress if arrays.state == "built"]
    assert len(built) == len(set(built)) == 4  # pixels and targets of views 2 and 3, once
    said = capsys.readouterr().err
    assert len(re.findall(r"^kd-MultiBranchNet-00[01]: built in", said, re.MULTILINE)) == 4
    result = train_from_file(Path("results/x/best/kd-MultiBranchNet.yaml"))
    assert result["best_accuracy"] == result["recorded_accuracy"]


@pytest.mark.slow
def test_a_sweep_without_a_cache_learns_the_same(small_sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDTUNE_CACHE", str(tmp_path / "cache"))
    config = {**small_sweep.load_events()[0].config, "name": "live", "cache_gb": 0, "trials": 1}
    live_sweep = run_sweep({**config, "methods": ["at"], "spaces": []})
    assert not live_sweep.load_events()[0].cache.prepared and not (tmp_path / "cache").exists()
    live, cached = (
        TrialHistory(sweep.load_events()).trials["at-MultiBranchNet-000"].epochs
        for sweep in (live_sweep, small_sweep)
    )
    for part in ("at", "classification"):  # every step amplifies the rounding
        assert live[0].losses[part] == pytest.approx(cached[0].losses[part], rel=0.05)


@pytest.mark.slow
def test_a_sweep_that_is_out_of_time_is_complete(
    ray_session, folder, tmp_path, monkeypatch, capsys
):
    """Its time is over once an epoch is logged, however long processes take to start."""
    monkeypatch.chdir(tmp_path)

    def elapsed(stopwatch):
        log = Path("results/x/log.jsonl")
        return 30.0 * (log.exists() and '"epoch_finished"' in log.read_text())

    monkeypatch.setattr(Stopwatch, "elapsed_seconds", property(elapsed))
    sweep = {
        "name": "x", "data": str(folder), "methods": ["student"], "models": ["MultiBranchNet"],
        "baselines": False, "time_budget": "30s", "epochs": 1000, "settings": {"batch_size": 16},
        "image_size": 8,
    }  # fmt: skip
    ends = of_kind(run_sweep(sweep), TrialEnded)
    assert ends and {event.state for event in ends} == {"stopped"}
    assert "the time budget of 30 s is spent" in {event.reason for event in ends}
    trials = pd.read_csv("results/x/trials.csv")
    assert set(trials.state) == {"stopped"} and (trials.epochs > 0).any()
    said = capsys.readouterr().err
    assert "1 cell, 30 s of time, at most 1000 epochs per trial" in said
    for line in find_images(str(folder)).describe():
        assert line in said
    assert Path("results/x/best/student-MultiBranchNet.yaml").is_file()


@pytest.mark.slow
def test_a_sweep_learns_from_an_earlier_one(small_sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = {**small_sweep.load_events()[0].config, "name": "more", "spaces": [], "trials": 1}
    warm = {"methods": ["at"], "models": ["MultiBranchNet", "ResNet18"], "epochs": 4}
    sweep = run_sweep({**config, **warm, "warm_start": [str(small_sweep.path)]})
    learned = {event.model: event for event in of_kind(sweep, WarmStart)}
    assert len(learned["MultiBranchNet"].observations) == 3
    assert not learned["ResNet18"].observations and learned["ResNet18"].start
    said = capsys.readouterr().err
    assert f"at-MultiBranchNet: 3 observations of {small_sweep.path}: nothing differs" in said
    assert "at-ResNet18: " in said and "it has no trials of at-ResNet18" in said
    assert {event.trial_id for event in of_kind(sweep, TrialProposed)} == {
        "at-MultiBranchNet-000", "at-ResNet18-000",
    }  # fmt: skip
