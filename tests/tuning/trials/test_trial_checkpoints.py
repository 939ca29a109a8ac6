"""Checkpoints of trials and the weights that are kept: what is written, loaded and removed."""

from itertools import islice
from zipfile import ZipFile

import pytest
import torch
from event_logs import cell_modelled, make_metrics
from full_disk import file_size_limit
from small_runs import make_epoch_data, small_config

from kdtune.data.folders import find_images
from kdtune.errors import DiskFullError, GpuLostError
from kdtune.export.selected_runs import select_best_runs
from kdtune.log.events import EpochFinished, TrialEnded, TrialProposed
from kdtune.log.folder import SweepFolder
from kdtune.models.checkpoints import load_model, read_checkpoint, write_checkpoint
from kdtune.reports.tables.leaderboard import build_sweep_tables
from kdtune.storage.remote import Storage, StorageError
from kdtune.training.loop import fit
from kdtune.tuning.trials import trial_checkpoints
from kdtune.tuning.trials.best_weights import (
    CheckpointCleanup,
    ConfirmedWeights,
    write_best_weights,
)
from kdtune.tuning.trials.results import CacheReported, EpochReported
from kdtune.tuning.trials.trial_checkpoints import TrialCheckpoints, WriteCost, list_checkpoints
from kdtune.tuning.trials.trial_process import run_trial


@pytest.fixture
def always(monkeypatch):
    """Checkpoints take no time."""
    monkeypatch.setattr(trial_checkpoints, "CHECKPOINT_TIME_SHARE", float("inf"))


def config_of(folder, **settings):
    return small_config(folder, method="student", epochs=4, **settings)


def results_of(config, folder):
    """Yield the metrics of each epoch, and how the trial failed if it did."""
    for result in run_trial(config.model_dump(), folder=folder):
        if not isinstance(result, CacheReported):
            yield result.metrics if isinstance(result, EpochReported) else result


def without_time(metrics):
    return metrics.model_copy(update={"seconds": 0})


def test_a_trial_that_was_left_resumes_with_the_same_numbers(folder, tmp_path):
    config = config_of(folder)
    whole = list(results_of(config, None))
    first = results_of(config, tmp_path)
    first_epochs = list(islice(first, 2))
    first.close()
    again = list(results_of(config, tmp_path))
    assert again[:2] == first_epochs  # to the second
    assert list(map(without_time, again)) == list(map(without_time, whole))


def test_a_killed_trial_resumes_from_its_last_checkpoint(folder, tmp_path, always):
    config = config_of(folder)
    killed = results_of(config, tmp_path)
    first_epochs = list(islice(killed, 3))
    files = [p.name for p in list_checkpoints(tmp_path)]
    assert files == ["epoch-00002.pth", "epoch-00003.pth"]  # the last two
    assert next(results_of(config, tmp_path)) == first_epochs[0]
    state, history = TrialCheckpoints(tmp_path, config, ()).load_latest()
    assert state["epoch"] == 3 and history == first_epochs
    killed.close()


def test_the_checkpoint_before_a_damaged_one_is_loaded(folder, tmp_path, always):
    config = config_of(folder)
    whole = list(results_of(config, tmp_path))
    newest = list_checkpoints(tmp_path)[-1]
    content = newest.read_bytes()
    third, half = len(content) // 3, len(content) // 2
    largest = max(ZipFile(newest).infolist(), key=lambda record: record.file_size)
    a_bit = bytearray(content)
    a_bit[largest.header_offset + largest.file_size // 2] ^= 1
    zeros = content[:third] + bytes(half - third) + content[half:]
    for damaged in (b"", content[:half], zeros, a_bit):
        newest.write_bytes(damaged)
        _, history = TrialCheckpoints(tmp_path, config, ()).load_latest()
        assert history == whole[:3]
    again = list(results_of(config, tmp_path))
    assert list(map(without_time, again)) == list(map(without_time, whole))


def test_checkpoints_of_other_settings_are_skipped(folder, tmp_path, always):
    list(results_of(config_of(folder), tmp_path))
    assert TrialCheckpoints(tmp_path, config_of(folder, lr=0.5), ()).load_latest() is None
    elsewhere = config_of(folder).model_copy(update={"data_dir": "/elsewhere", "cache_gb": 1})
    assert TrialCheckpoints(tmp_path, elsewhere, ()).load_latest() is not None
    for path in list_checkpoints(tmp_path):  # as a version without a setting wrote them
        content = read_checkpoint(path)
        del content["config"]["ema_decay"]
        write_checkpoint(path, content)
    assert TrialCheckpoints(tmp_path, config_of(folder), ()).load_latest() is not None
    averaged = config_of(folder, ema_decay=0.5)
    assert TrialCheckpoints(tmp_path, averaged, ()).load_latest() is None


def test_checkpoints_take_a_small_share_of_the_time(folder, tmp_path, monkeypatch):
    config, written = config_of(folder), []
    write_cost = WriteCost()
    checkpoints = TrialCheckpoints(tmp_path, config, (), write_cost)
    monkeypatch.setattr(checkpoints, "save", lambda result, history: written.append(result.epoch))
    inputs = make_epoch_data(config, find_images(str(folder)))
    batches = inputs.train_batches, inputs.evaluation_batches("validation")
    [result] = islice(fit(config, *batches, num_classes=10), 1)
    size = 2 * sum(t.nbytes for t in result.state["student"].values())
    for cost, expected in ((0.5, [1]), (1.5, []), (2.5, [])):
        due_seconds = trial_checkpoints.CHECKPOINT_TIME_SHARE * result.seconds
        write_cost.seconds_per_byte = cost * due_seconds / size
        written.clear()
        checkpoints._seconds_since_save = 0.0
        checkpoints.save_if_due(result, [])
        assert written == expected
    checkpoints.save_if_due(result, [])
    checkpoints.save_if_due(result, [])
    assert written == [1]  # after three epochs


def test_a_full_disk_is_a_failure_and_leaves_no_partial_file(folder, tmp_path, always):
    config = config_of(folder)
    next(results_of(config, None))  # so that views are there
    with file_size_limit(100_000):
        *_, last = results_of(config, tmp_path)
    assert last.failure == "disk_full" and "There is no room to write" in last.reason
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory"),
        (torch.AcceleratorError("CUDA error: out of memory"), "out_of_memory"),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"
            ),
            "out_of_memory",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), "out_of_memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), "out_of_memory"),
        (
            RuntimeError("GET was unable to find an engine to execute this computation"),
            "out_of_memory",
        ),
        (RuntimeError("Unable to find an engine to execute this computation"), "out_of_memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"), "crashed"),
    ],
)
def test_too_little_memory_is_a_failure_of_its_own(folder, monkeypatch, error, failure):
    def lack(*args, **kwargs):
        raise error

    monkeypatch.setattr("kdtune.tuning.trials.trial_process.fit", lack)
    *_, last = results_of(config_of(folder), None)
    assert last.failure == failure and str(error) in last.reason


def test_a_process_that_lost_its_gpu_ends_instead_of_taking_the_next_trial(folder, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered\nmore of it")

    monkeypatch.setattr("kdtune.tuning.trials.trial_process.fit", fail)
    monkeypatch.setattr("kdtune.tuning.trials.trial_process.is_gpu_lost", lambda: True)
    monkeypatch.setattr("kdtune.tuning.trials.trial_process.describe_gpu", lambda: "T4 (GPU-5)")
    error = "AcceleratorError: CUDA error: device-side assert triggered"
    reason = f"^its process lost the GPU T4 \\(GPU-5\\): {error}$"
    with pytest.raises(GpuLostError, match=reason):
        list(results_of(config_of(folder), None))


IDENTITY = {"method": "student", "model": "MultiBranchNet"}


def propose(trial_id, number=0, origin="start", candidate=None):
    return TrialProposed(
        trial_id=trial_id, **IDENTITY, number=number, origin=origin, params={}, distributions={},
        config={}, candidate=candidate,
    )  # fmt: skip


def end_of(trial_id, state, best, epochs=1):
    return TrialEnded(
        trial_id=trial_id, **IDENTITY, state=state, reason="", epochs=epochs,
        best_validation_accuracy=best,
    )  # fmt: skip


def log_of(trials):
    """Yield the events of trials of one cell: (id, best accuracies, state)."""
    for number, (trial_id, bests, state) in enumerate(trials):
        yield propose(trial_id, number)
        for epoch, best in enumerate(bests, start=1):
            metrics = make_metrics(epoch, best, seconds=1.0)
            yield EpochFinished(trial_id=trial_id, **IDENTITY, **dict(metrics))
        if state is not None:
            yield end_of(trial_id, state, bests[-1], len(bests))


def test_the_weights_of_the_best_of_a_cell_are_kept_and_the_rest_is_removed(
    folder, tmp_path, always
):
    sweep, config = SweepFolder(tmp_path), config_of(folder)
    for name in ("b", "c", "d"):
        (sweep.checkpoints_folder / name).mkdir(parents=True)
    found = list(islice(results_of(config, sweep.checkpoints_folder / "a"), 2))
    bests = [metrics.best_validation_accuracy for metrics in found]
    trials = [
        ("a", bests, "stopped"), ("b", [2.0], "diverged"), ("c", bests, "finished"),
        ("d", [0.0], None),
    ]  # fmt: skip
    events, cleanup = list(log_of(trials)), CheckpointCleanup(sweep)
    for event in events[:-2]:  # d runs
        cleanup.fold(event)
    assert {p.name for p in sweep.checkpoints_folder.iterdir()} == {"a", "b", "c", "d"}
    cleanup.activate()
    assert {p.name for p in sweep.checkpoints_folder.iterdir()} == {"a", "c", "d"}
    best = select_best_runs(build_sweep_tables(events))
    for _ in range(2):  # as often as one likes
        write_best_weights(sweep, best)
        cleanup.remove_all()
        assert {p.name for p in sweep.checkpoints_folder.iterdir()} == {"d"}
        loaded = load_model(sweep.best_path("student", "MultiBranchNet", ".pth"))
        assert loaded["trial_id"] == "a" and "training" not in loaded
    best = max(found, key=lambda metrics: metrics.validation_accuracy)
    assert loaded["epoch"] == best.epoch
    assert loaded["validation_accuracy"] == best.validation_accuracy


def test_the_three_best_settings_keep_their_checkpoints_and_repeats_none(tmp_path):
    sweep = SweepFolder(tmp_path)
    for name in "abcdefg":
        (sweep.checkpoints_folder / name).mkdir(parents=True)

    def left():
        return "".join(sorted(path.name for path in sweep.checkpoints_folder.iterdir()))

    cleanup, bests = CheckpointCleanup(sweep), (0.9, 0.8, 0.7, 0.6)
    for event in log_of(
        [(name, [best], "finished") for name, best in zip("abcd", bests, strict=True)]
    ):
        cleanup.fold(event)
    cleanup.activate()
    assert left() == "abcefg"  # e, f and g have not ended
    metrics = dict(make_metrics(1, 0.1))
    cleanup.fold(propose("e", 4, "repeat", "a"))
    cleanup.fold(EpochFinished(trial_id="e", **IDENTITY, **metrics))
    cleanup.fold(end_of("e", "finished", 0.1))  # its process may be writing
    assert left() == "abcefg"
    for event in [*log_of([("f", [0.65], "finished")])]:  # better than the mean of a, 0.5
        cleanup.fold(event)
    assert left() == "bcfg"
    cleanup.fold(cell_modelled({"c": 0.7, "b": 0.6}, **IDENTITY))
    cleanup.remove_all()  # the weights of the best, c, are not written yet
    assert left() == "cg"


def test_the_best_settings_by_the_model_keep_their_checkpoints_too(tmp_path):
    """Trial d is the fourth by its score, and the first by the model."""
    sweep = SweepFolder(tmp_path)
    for name in "abcde":
        (sweep.checkpoints_folder / name).mkdir(parents=True)
    order = ["d", "a", "b", "e", "c"]
    cleanup = CheckpointCleanup(sweep, rank_by_model=lambda cell: order)
    trials = [(name, [0.9 - i / 10], "finished") for i, name in enumerate("abcde")]
    cleanup.activate()
    for event in log_of(trials):
        cleanup.fold(event)
    cleanup.remove_ended()
    assert sorted(path.name for path in sweep.checkpoints_folder.iterdir()) == list("abcd")
    cleanup.fold(cell_modelled({"d": 0.7, "a": 0.6}, **IDENTITY))
    cleanup.remove_all()  # the weights of the best, d, are not written yet
    assert [path.name for path in sweep.checkpoints_folder.iterdir()] == ["d"]


def test_the_weights_of_a_trial_are_kept_whose_best_epoch_was_lost_with_its_process(
    folder, tmp_path, always
):
    """The log has an epoch that was better than when the resumed trial repeated it."""
    sweep = SweepFolder(tmp_path)
    *_, last = results_of(config_of(folder), sweep.checkpoints_folder / "a")
    best = last.best_validation_accuracy
    tables = build_sweep_tables(list(log_of([("a", [0.0, best + 0.1, best], "finished")])))
    write_best_weights(sweep, select_best_runs(tables))
    loaded = load_model(sweep.best_path("student", "MultiBranchNet", ".pth"))
    [trial] = tables.trials.itertuples()
    assert loaded["validation_accuracy"] == trial.best_validation_accuracy == best
    assert trial.mean_validation_accuracy == best and trial.best_epoch == 3


def test_weights_of_another_trial_than_the_best_are_removed(folder, tmp_path, always, capsys):
    sweep, config = SweepFolder(tmp_path), config_of(folder)
    *_, last = results_of(config, sweep.checkpoints_folder / "a")
    best = last.best_validation_accuracy
    trials = [("a", [best], "finished"), ("b", [best + 0.1], "finished")]
    write_best_weights(sweep, select_best_runs(build_sweep_tables(list(log_of(trials[:1])))))
    assert sweep.best_path("student", "MultiBranchNet", ".pth").is_file()
    list(
        results_of(config, sweep.checkpoints_folder / "b")
    )  # a checkpoint of an earlier epoch's best
    assert not capsys.readouterr().err
    write_best_weights(sweep, select_best_runs(build_sweep_tables(list(log_of(trials)))))
    path = sweep.best_path("student", "MultiBranchNet", ".pth")
    assert not path.exists()
    assert f"{path} is not written: the weights of b were not kept" in capsys.readouterr().err


def test_no_room_for_weights_is_a_sentence(folder, tmp_path, always):
    sweep = SweepFolder(tmp_path)
    *_, last = results_of(config_of(folder), sweep.checkpoints_folder / "a")
    trials = [("a", [last.best_validation_accuracy], "finished")]
    best = select_best_runs(build_sweep_tables(list(log_of(trials))))
    with file_size_limit(100_000):
        with pytest.raises(DiskFullError, match="no room to write .*student-MultiBranchNet.pth"):
            write_best_weights(sweep, best)
    assert not list((tmp_path / "best").iterdir())


# In a remote storage


@pytest.fixture
def stored(tmp_path):
    return Storage(str(tmp_path / "store")).subfolder("x/checkpoints")


def test_a_trial_resumes_elsewhere_from_a_storage(folder, tmp_path, stored, always):
    config = config_of(folder)
    killed = results_of(config, stored.subfolder("t"))
    first_epochs = list(islice(killed, 3))
    assert stored.list_files() == ["t/epoch-00002.pth", "t/epoch-00003.pth"]  # the last two
    again = list(results_of(config, stored.subfolder("t")))
    assert again[:3] == first_epochs and len(again) == 4
    killed.close()


def test_a_storage_that_fails_costs_checkpoints_and_no_trial(folder, stored, always, monkeypatch):
    config, put, failed = config_of(folder), Storage.upload, []

    def fail(self, path, name):
        failed.append(name)
        raise StorageError("it is away")

    monkeypatch.setattr(Storage, "upload", fail)
    monkeypatch.setattr(trial_checkpoints, "STORAGE_PAUSE_FACTOR", 0)
    trial = results_of(config, stored.subfolder("t"))
    next(trial)
    monkeypatch.setattr(Storage, "upload", put)
    assert failed == ["epoch-00001.pth"] and len(list(trial)) == 3
    assert stored.list_files() == ["t/epoch-00003.pth", "t/epoch-00004.pth"]


def test_a_storage_that_fails_is_left_alone_for_a_while(folder, stored, always, monkeypatch):
    tries = []

    def fail(self, path, name):
        tries.append(name)
        raise StorageError("it is away")

    monkeypatch.setattr(Storage, "upload", fail)
    monkeypatch.setattr(trial_checkpoints, "STORAGE_PAUSE_FACTOR", 1e9)
    assert len(list(results_of(config_of(folder), stored.subfolder("t")))) == 4
    assert tries == ["epoch-00001.pth", "epoch-00004.pth"]  # the last one is tried in any case


def test_no_file_of_a_trial_stays_on_its_node(folder, tmp_path, stored, always, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "node"))
    (tmp_path / "node").mkdir()
    trial = results_of(config_of(folder), stored.subfolder("t"))
    next(trial)
    assert list((tmp_path / "node").iterdir())
    trial.close()
    assert not list((tmp_path / "node").iterdir())


def test_weights_come_from_a_storage_and_the_rest_is_removed_there_too(
    folder, tmp_path, stored, always
):
    sweep, config = SweepFolder(tmp_path / "sweep"), config_of(folder)
    for name in ("a", "b"):
        *_, last = results_of(config, stored.subfolder(name))
    best = last.best_validation_accuracy
    events = list(log_of([("a", [best], "finished"), ("b", [best - 0.1], "finished")]))
    cleanup = CheckpointCleanup(sweep, stored)
    for event in events:
        cleanup.fold(event)
    write_best_weights(sweep, select_best_runs(build_sweep_tables(events)), stored)
    assert sweep.best_path("student", "MultiBranchNet", ".pth").is_file()
    cleanup.activate()
    cleanup.remove_all()
    assert stored.list_files() == [] and not list(sweep.checkpoints_folder.iterdir())


def test_weights_of_a_confirmation_come_from_a_storage(folder, tmp_path, stored, always):
    sweep, config = SweepFolder(tmp_path / "sweep"), config_of(folder)
    *_, last = results_of(config, stored.subfolder("a-seed1"))
    weights = ConfirmedWeights(sweep, stored)
    weights.activate()
    weights.fold(propose("a-seed1", 1, "confirm", "a"))
    weights.fold(end_of("a-seed1", "finished", last.best_validation_accuracy))
    assert sweep.network_path("a-seed1").is_file() and stored.list_files() == []


def fail_downloads(monkeypatch, times):
    """Have downloads fail for a number of times."""
    get, left = Storage.download, list(range(times))

    def fails(self, name, path):
        if left:
            left.pop()
            raise StorageError("it is away")
        get(self, name, path)

    monkeypatch.setattr(Storage, "download", fails)


def test_a_storage_that_fails_for_a_moment_costs_no_epochs(
    folder, tmp_path, stored, always, monkeypatch
):
    config = config_of(folder)
    first_epochs = list(islice(results_of(config, stored.subfolder("t")), 2))
    fail_downloads(monkeypatch, 2)
    monkeypatch.setattr(trial_checkpoints, "LOAD_RETRY_DELAYS_SECONDS", (0, 0, 0))
    files = trial_checkpoints.RemoteTrialCheckpoints(
        tmp_path / "node", config, (), storage=stored.subfolder("t")
    )
    _, history = files.load_latest()
    assert history == first_epochs and len(history) == 2


def test_weights_that_a_storage_does_not_give_now_come_later(
    folder, tmp_path, stored, always, monkeypatch
):
    sweep, config = SweepFolder(tmp_path / "sweep"), config_of(folder)
    for name in ("a", "a-seed1"):
        *_, last = results_of(config, stored.subfolder(name))
    best = last.best_validation_accuracy
    run_events = propose("a-seed1", 1, "confirm", "a"), end_of("a-seed1", "finished", best)
    events = list(log_of([("a", [best], "finished")]))

    def search_ends():
        cleanup = CheckpointCleanup(sweep, stored)
        for event in events:
            cleanup.fold(event)
        write_best_weights(sweep, select_best_runs(build_sweep_tables(events)), stored)
        cleanup.activate()
        cleanup.remove_all()

    with monkeypatch.context() as patch:
        fail_downloads(patch, 1_000)
        weights = ConfirmedWeights(sweep, stored)
        weights.activate()
        for event in run_events:
            weights.fold(event)
        search_ends()
    assert {name.split("/")[0] for name in stored.list_files()} == {"a", "a-seed1"}
    again = ConfirmedWeights(sweep, stored)
    for event in run_events:
        again.fold(event)
    again.activate()
    search_ends()
    assert sweep.network_path("a-seed1").is_file() and stored.list_files() == []
    assert sweep.best_path("student", "MultiBranchNet", ".pth").is_file()
