"""Checkpoints of trials, and the networks that stay of them: what is written, taken, removed."""

import resource
from itertools import islice

import pytest
import torch
from small_runs import make_epoch_data, small_config

from kdtune.data.folders import find_images
from kdtune.errors import DiskFullError
from kdtune.export.selected_runs import select_best_runs
from kdtune.log.folder import SweepFolder
from kdtune.models.checkpoints import load_model
from kdtune.reports.tables.leaderboard import build_sweep_tables
from kdtune.storage.remote import Storage, StorageError
from kdtune.training.loop import fit
from kdtune.tuning.trials import trial_checkpoints as trial_files
from kdtune.tuning.trials.best_weights import (
    CheckpointCleanup,
    ConfirmedWeights,
    write_best_weights,
)
from kdtune.tuning.trials.trainable import CACHE_EVENT_KEY, DISK_FULL, OUTCOME_KEY, run_trial
from kdtune.tuning.trials.trial_checkpoints import TrialCheckpoints, list_checkpoints


@pytest.fixture
def always(monkeypatch):
    """Checkpoints take no time."""
    monkeypatch.setattr(trial_files, "CHECKPOINT_TIME_SHARE", float("inf"))


def config_of(folder, **settings):
    return small_config(folder, method="student", epochs=4, **settings)


def results_of(config, folder):
    return (r for r in run_trial(config.model_dump(), (), folder) if CACHE_EVENT_KEY not in r)


def without_time(figures):
    return {k: v for k, v in figures.items() if k != "seconds"}


@pytest.mark.parametrize("left_after", [1, 2, 3])
def test_a_trial_that_was_left_goes_on_to_the_same_numbers(folder, tmp_path, left_after):
    config = config_of(folder)
    whole = list(results_of(config, None))
    first = results_of(config, tmp_path)
    begun = list(islice(first, left_after))
    first.close()
    again = list(results_of(config, tmp_path))
    assert again[:left_after] == begun  # to the second
    assert list(map(without_time, again)) == list(map(without_time, whole))


def test_a_killed_trial_goes_on_from_its_last_checkpoint(folder, tmp_path, always):
    config = config_of(folder)
    killed = results_of(config, tmp_path)
    begun = list(islice(killed, 3))
    files = [p.name for p in list_checkpoints(tmp_path)]
    assert files == ["epoch-00002.pth", "epoch-00003.pth"]  # the last two
    assert next(results_of(config, tmp_path)) == begun[0]
    state, history = TrialCheckpoints(tmp_path, config, ()).load_latest()
    assert state["epoch"] == 3 and history == begun
    killed.close()


@pytest.mark.parametrize("damage", ["empty", "half", "zeros", "bit"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(folder, tmp_path, always, damage):
    config = config_of(folder)
    whole = list(results_of(config, tmp_path))
    newest = list_checkpoints(tmp_path)[-1]
    content = bytearray(newest.read_bytes())
    if damage == "empty":
        content = b""
    elif damage == "half":
        content = content[: len(content) // 2]
    elif damage == "zeros":
        content[len(content) // 3 : len(content) // 2] = bytes(
            len(content) // 2 - len(content) // 3
        )
    else:
        content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    _, history = TrialCheckpoints(tmp_path, config, ()).load_latest()
    assert history == whole[:3]
    again = list(results_of(config, tmp_path))
    assert list(map(without_time, again)) == list(map(without_time, whole))


def test_checkpoints_of_other_settings_are_passed_over(folder, tmp_path, always):
    list(results_of(config_of(folder), tmp_path))
    assert TrialCheckpoints(tmp_path, config_of(folder, lr=0.5), ()).load_latest() is None
    elsewhere = config_of(folder).model_copy(update={"data_dir": "/elsewhere", "cache_gb": 1})
    assert TrialCheckpoints(tmp_path, elsewhere, ()).load_latest() is not None


def test_checkpoints_take_a_small_share_of_the_time(folder, tmp_path, monkeypatch):
    config, written = config_of(folder), []
    files = TrialCheckpoints(tmp_path, config, ())
    monkeypatch.setattr(files, "save", lambda result, history: written.append(result.epoch))
    inputs = make_epoch_data(config, find_images(str(folder)))
    batches = inputs.train_batches, inputs.evaluation_batches("validation")
    [result] = islice(fit(config, *batches, num_classes=10), 1)
    size = 2 * sum(t.nbytes for t in result.state["student"].values())
    for cost, expected in ((0.5, [1]), (1.5, []), (2.5, [])):
        monkeypatch.setattr(
            TrialCheckpoints,
            "seconds_per_byte",
            cost * trial_files.CHECKPOINT_TIME_SHARE * result.seconds / size,
        )
        written.clear()
        files._seconds_since_save = 0.0
        files.save_if_due(result, [])
        assert written == expected
    files.save_if_due(result, [])
    files.save_if_due(result, [])
    assert written == [1]  # after three epochs


def test_a_full_disk_is_an_outcome_and_leaves_no_part(folder, tmp_path, always):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    config = config_of(folder)
    list(results_of(config, None))  # so that views are there
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        *_, last = results_of(config, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert last[OUTCOME_KEY] == DISK_FULL and "There is no room to write" in last["reason"]
    assert list(tmp_path.iterdir()) == []


def test_memory_that_lacks_is_an_outcome_of_its_own(folder, monkeypatch):
    def lack(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("kdtune.tuning.trials.trainable.fit", lack)
    *_, last = results_of(config_of(folder), None)
    assert last[OUTCOME_KEY] == "out_of_memory" and "Tried to allocate" in last["reason"]


def log_of(trials):
    """The log of trials of one cell: (id, best accuracies, state)."""
    for number, (name, bests, state) in enumerate(trials):
        about = {"trial_id": name, "method": "student", "model": "MultiBranchNet"}
        plain = {"parameters": {}, "distributions": {}, "config": {}, "origin": "start"}
        yield {"event": "asked", **about, "number": number, **plain}
        for epoch, best in enumerate(bests, start=1):
            figures = {"epoch": epoch, "validation_accuracy": best, "seconds": 1.0}
            figures |= {"best_validation_accuracy": best, "device": "cpu", "threads": 1}
            yield {"event": "epoch", **about, **figures}
        if state is not None:
            end = {"state": state, "reason": "", "best_validation_accuracy": bests[-1]}
            yield {"event": "ended", **about, **end}


def test_the_best_of_a_cell_stays_as_a_network_and_the_rest_goes(folder, tmp_path, always):
    sweep, config = SweepFolder(tmp_path), config_of(folder)
    for name in ("a", "b", "c", "d"):
        found = list(islice(results_of(config, sweep.checkpoints_folder / name), 2))
    bests = [figures["best_validation_accuracy"] for figures in found]
    trials = [
        ("a", bests, "stopped"), ("b", [2.0], "diverged"), ("c", bests, "finished"),
        ("d", [0.0], None),
    ]  # fmt: skip
    events, leftovers = list(log_of(trials)), CheckpointCleanup(sweep)
    for event in events[:-2]:  # d is under way
        leftovers.fold(event)
    assert {p.name for p in sweep.checkpoints_folder.iterdir()} == {"a", "b", "c", "d"}
    leftovers.activate()
    assert {p.name for p in sweep.checkpoints_folder.iterdir()} == {"a", "d"}
    list(islice(results_of(config, sweep.checkpoints_folder / "b"), 2))
    list(islice(results_of(config, sweep.checkpoints_folder / "c"), 2))
    leftovers.fold(events[-3])  # c has ended, and may be writing
    assert {p.name for p in sweep.checkpoints_folder.iterdir()} == {"a", "c", "d"}
    leftovers.remove_ended()
    assert {p.name for p in sweep.checkpoints_folder.iterdir()} == {"a", "d"}
    best = select_best_runs(build_sweep_tables(events))
    for _ in range(2):  # as often as one likes
        write_best_weights(sweep, best)
        leftovers.remove_all()
        assert {p.name for p in sweep.checkpoints_folder.iterdir()} == {"d"}
        loaded = load_model(sweep.best_path("student", "MultiBranchNet", ".pth"))
        assert loaded["trial_id"] == "a" and "training" not in loaded
    best = max(islice(results_of(config, None), 2), key=lambda r: r["validation_accuracy"])
    assert loaded["epoch"] == best["epoch"]
    assert loaded["validation_accuracy"] == best["validation_accuracy"]


def test_a_network_of_another_trial_than_the_best_goes(folder, tmp_path, always):
    sweep, config = SweepFolder(tmp_path), config_of(folder)
    *_, last = results_of(config, sweep.checkpoints_folder / "a")
    best = last["best_validation_accuracy"]
    trials = [("a", [best], "finished"), ("b", [best + 0.1], "finished")]
    write_best_weights(sweep, select_best_runs(build_sweep_tables(list(log_of(trials[:1])))))
    assert sweep.best_path("student", "MultiBranchNet", ".pth").is_file()
    list(
        results_of(config, sweep.checkpoints_folder / "b")
    )  # a checkpoint of an earlier epoch's best
    write_best_weights(sweep, select_best_runs(build_sweep_tables(list(log_of(trials)))))
    assert not sweep.best_path("student", "MultiBranchNet", ".pth").exists()


def test_no_room_for_a_network_is_a_sentence(folder, tmp_path, always):
    sweep = SweepFolder(tmp_path)
    *_, last = results_of(config_of(folder), sweep.checkpoints_folder / "a")
    trials = [("a", [last["best_validation_accuracy"]], "finished")]
    best = select_best_runs(build_sweep_tables(list(log_of(trials))))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DiskFullError, match="no room to write .*student-MultiBranchNet.pth"):
            write_best_weights(sweep, best)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "best").iterdir())


# In a storage


@pytest.fixture
def stored(tmp_path):
    return Storage(str(tmp_path / "store")).subfolder("x/checkpoints")


def test_a_trial_goes_on_elsewhere_from_a_storage(folder, tmp_path, stored, always):
    config = config_of(folder)
    whole = list(results_of(config, None))
    killed = results_of(config, stored.subfolder("t"))
    begun = list(islice(killed, 3))
    assert stored.list_files() == ["t/epoch-00002.pth", "t/epoch-00003.pth"]  # the last two
    again = list(results_of(config, stored.subfolder("t")))
    assert again[:3] == begun
    assert list(map(without_time, again)) == list(map(without_time, whole))
    killed.close()


def test_a_storage_that_fails_costs_checkpoints_and_no_trial(folder, stored, always, monkeypatch):
    config, put, failed = config_of(folder), Storage.upload, []

    def fail(self, path, name):
        failed.append(name)
        raise StorageError("it is away")

    monkeypatch.setattr(Storage, "upload", fail)
    monkeypatch.setattr(trial_files, "STORAGE_PAUSE_FACTOR", 0)
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
    monkeypatch.setattr(trial_files, "STORAGE_PAUSE_FACTOR", 1e9)
    assert len(list(results_of(config_of(folder), stored.subfolder("t")))) == 4
    assert tries == ["epoch-00001.pth", "epoch-00004.pth"]  # the last one is tried in any case


def test_nothing_of_a_trial_stays_on_its_node(folder, tmp_path, stored, always, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "node"))
    (tmp_path / "node").mkdir()
    trial = results_of(config_of(folder), stored.subfolder("t"))
    next(trial)
    assert list((tmp_path / "node").iterdir())
    trial.close()
    assert not list((tmp_path / "node").iterdir())


def test_networks_come_from_a_storage_and_the_rest_goes_there_too(
    folder, tmp_path, stored, always
):
    sweep, config = SweepFolder(tmp_path / "sweep"), config_of(folder)
    for name in ("a", "b"):
        *_, last = results_of(config, stored.subfolder(name))
    best = last["best_validation_accuracy"]
    events = list(log_of([("a", [best], "finished"), ("b", [best - 0.1], "finished")]))
    leftovers = CheckpointCleanup(sweep, stored)
    for event in events:
        leftovers.fold(event)
    write_best_weights(sweep, select_best_runs(build_sweep_tables(events)), stored)
    assert sweep.best_path("student", "MultiBranchNet", ".pth").is_file()
    leftovers.activate()
    leftovers.remove_all()
    assert stored.list_files() == [] and not list(sweep.checkpoints_folder.iterdir())


def test_networks_of_a_confirmation_come_from_a_storage(folder, tmp_path, stored, always):
    sweep, config = SweepFolder(tmp_path / "sweep"), config_of(folder)
    *_, last = results_of(config, stored.subfolder("a-seed1"))
    networks = ConfirmedWeights(sweep, stored)
    networks.activate()
    cell = {"trial_id": "a-seed1", "method": "student", "model": "MultiBranchNet"}
    best = last["best_validation_accuracy"]
    end = {"event": "ended", "state": "finished", "best_validation_accuracy": best}
    networks.fold({"event": "asked", "confirms": "a", **cell})
    networks.fold({**end, **cell})
    assert sweep.network_path("a-seed1").is_file() and stored.list_files() == []


def fails_to_get(monkeypatch, times):
    """Have storages fail so many times to give a file."""
    get, left = Storage.download, list(range(times))

    def fails(self, name, path):
        if left:
            left.pop()
            raise StorageError("it is away")
        get(self, name, path)

    monkeypatch.setattr(Storage, "download", fails)


@pytest.mark.parametrize("times", [1, 2])
def test_a_storage_that_fails_for_a_moment_costs_no_epochs(
    folder, stored, always, monkeypatch, times
):
    config = config_of(folder)
    begun = list(islice(results_of(config, stored.subfolder("t")), 2))
    fails_to_get(monkeypatch, times)
    monkeypatch.setattr(trial_files, "LOAD_RETRY_DELAYS_SECONDS", (0, 0, 0))
    files = trial_files.RemoteTrialCheckpoints(stored.subfolder("t"), config, ())
    _, history = files.load_latest()
    assert history == begun and len(history) == 2
    files.close()


def test_a_network_that_a_storage_does_not_give_now_comes_later(
    folder, tmp_path, stored, always, monkeypatch
):
    sweep, config = SweepFolder(tmp_path / "sweep"), config_of(folder)
    for name in ("a", "a-seed1"):
        *_, last = results_of(config, stored.subfolder(name))
    best = last["best_validation_accuracy"]
    cell = {"trial_id": "a-seed1", "method": "student", "model": "MultiBranchNet"}
    end = {"event": "ended", "state": "finished", "best_validation_accuracy": best, **cell}
    events = list(log_of([("a", [best], "finished")]))

    def search_ends():
        leftovers = CheckpointCleanup(sweep, stored)
        for event in events:
            leftovers.fold(event)
        write_best_weights(sweep, select_best_runs(build_sweep_tables(events)), stored)
        leftovers.activate()
        leftovers.remove_all()

    with monkeypatch.context() as patch:
        fails_to_get(patch, 1_000)
        networks = ConfirmedWeights(sweep, stored)
        networks.activate()
        networks.fold({"event": "asked", "confirms": "a", **cell})
        networks.fold(end)
        search_ends()
    assert {name.split("/")[0] for name in stored.list_files()} == {"a", "a-seed1"}
    again = ConfirmedWeights(sweep, stored)
    again.fold({"event": "asked", "confirms": "a", **cell})
    again.fold(end)
    again.activate()
    search_ends()
    assert sweep.network_path("a-seed1").is_file() and stored.list_files() == []
    assert sweep.best_path("student", "MultiBranchNet", ".pth").is_file()
