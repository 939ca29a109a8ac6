"""Confirming a sweep: which runs start, which is chosen and tested, by hand and for real."""

import os
import shutil
import sys
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from event_logs import OPENING_FIELDS
from report_sweeps import Sweep, ended, epoch, proposed
from small_runs import write_digits
from sweep_harness import sweep_config

from kdtune.config.train import TrainConfig
from kdtune.data.decoded import DecodedDataset
from kdtune.data.folders import find_images, load_test_groups
from kdtune.errors import UserError
from kdtune.log.events import (
    Candidate,
    CandidateChosen,
    Completed,
    ConfirmStarted,
    RunTested,
    SeedsAdded,
    TrialEnded,
    TrialRestarted,
    WeightsMissing,
)
from kdtune.log.folder import SweepFolder
from kdtune.models.checkpoints import load_model
from kdtune.reports.text.leaderboard import table_text
from kdtune.training.rerun import train_from_file
from kdtune.tuning.cluster.placement import ResourceRequest, Slots
from kdtune.tuning.confirm import confirm_sweep
from kdtune.tuning.scheduling.confirm_policy import ConfirmPolicy, best_trials, make_run_id
from kdtune.tuning.scheduling.scheduler import LogScheduler
from kdtune.tuning.sweep import run_sweep
from kdtune.tuning.trials.results import TrialFailed, to_ray
from kdtune.tuning.trials.trial_process import run_trial

CELLS = {("at", "A"): ["at-A-004", "at-A-001"], ("kd", "A"): ["kd-A-000", "kd-A-002"]}


class ByHand:
    """A confirmation on a log in memory, driven by hand."""

    def __init__(self, seeds=3, cells=CELLS):
        settings = {
            trial: {"method": trial[:2], "model": "A", "lr": 0.5}
            for ids in cells.values()
            for trial in sorted(ids, key=lambda trial: int(trial[5:]))
        }
        self.policy = ConfirmPolicy(sweep_config(), settings, lambda: 0.0)
        self.open(seeds, cells)

    def open(self, seeds, cells):
        candidates = tuple(
            Candidate(method=method, model=model, trial_id=trial)
            for (method, model), ids in cells.items()
            for trial in ids
        )
        self.append(
            ConfirmStarted(config={}, seeds=seeds, top=2, candidates=candidates, **OPENING_FIELDS)
        )

    def append(self, event):
        for fold in self.policy.folds:
            fold(event)

    def run(self, accuracy=lambda run: 0.5, state=lambda run: "finished"):
        """Run all that is proposed, and return the names."""
        names = []
        while cells := self.policy.next_cells():
            self.append(event := self.policy.propose(cells[0]))
            names.append(event.trial_id)
            end = TrialEnded(
                **event.identity, state=state(names[-1]), reason="", epochs=1,
                best_validation_accuracy=accuracy(names[-1]),
            )  # fmt: skip
            self.append(end)
        return names

    def choices(self):
        events = self.policy.choose_candidates()
        for event in events:
            self.append(event)
        return {event.cell: event.candidate for event in events}


def test_every_candidate_gets_every_seed_and_a_cell_is_whole_before_the_next():
    by_hand = ByHand()
    names = by_hand.run()
    assert names[:4] == ["at-A-004-seed1", "at-A-001-seed1", "at-A-004-seed2", "at-A-001-seed2"]
    assert sorted(names) == sorted(
        make_run_id(trial, seed) for ids in CELLS.values() for trial in ids for seed in (1, 2, 3)
    )
    assert by_hand.policy.finished and by_hand.policy.num_runs == 12


def test_seeds_that_were_added_are_added_to_the_chosen_and_never_taken_away():
    by_hand = ByHand()
    by_hand.run()
    at, kd = by_hand.choices()
    by_hand.append(SeedsAdded(cells=(at,), seeds=5, reason="open"))
    assert len(by_hand.run()) == 2
    by_hand.append(SeedsAdded(cells=(at, kd), seeds=4, reason="open"))
    assert len(by_hand.run()) == 1
    assert [by_hand.policy.seeds_of(cell) for cell in (at, kd)] == [5, 4]


def test_seeds_are_the_same_in_all_cells_and_others_than_those_of_the_search():
    policy = ByHand().policy
    seeds = [
        {policy.configure_run(trial, n).seed for ids in CELLS.values() for trial in ids}
        for n in range(1, 11)
    ]
    assert all(len(same) == 1 for same in seeds) and len(set.union(*seeds)) == 10
    asked = policy.configure_run("kd-A-000", 1)
    assert (asked.method, asked.lr) == ("kd", 0.5)


def test_the_choice_is_the_highest_mean_and_of_equals_the_earlier_trial():
    better = {"at-A-004-seed1": 0.9, "kd-A-002-seed1": 0.9}
    by_hand = ByHand()
    by_hand.run(lambda run: better.get(run, 0.5))
    assert by_hand.choices() == {("at", "A"): "at-A-004", ("kd", "A"): "kd-A-002"}
    by_hand = ByHand()
    by_hand.run()
    assert by_hand.choices() == {("at", "A"): "at-A-001", ("kd", "A"): "kd-A-000"}


def test_one_that_diverged_loses_and_then_one_with_too_few_sound_runs():
    states = {"at-A-004-seed2": "diverged"} | {f"kd-A-000-seed{n}": "crashed" for n in (1, 2)}
    by_hand = ByHand()
    by_hand.run(
        lambda run: 0.9 if run[:8] in ("at-A-004", "kd-A-000") else 0.5,
        lambda run: states.get(run, "finished"),
    )
    assert by_hand.choices() == {("at", "A"): "at-A-001", ("kd", "A"): "kd-A-002"}
    assert [run for _, run in by_hand.policy.untested_runs()] == [
        make_run_id(trial, seed) for trial in ("at-A-001", "kd-A-002") for seed in (1, 2, 3)
    ]


def test_a_crash_is_not_held_against_one_and_runs_again_when_it_is_confirmed_again():
    crashed = "kd-A-000-seed1"
    by_hand = ByHand(seeds=4)
    by_hand.run(
        lambda run: 0.9 if run[:8] == "kd-A-000" else 0.5,
        lambda run: "crashed" if run == crashed else "finished",
    )
    assert by_hand.choices()[("kd", "A")] == "kd-A-000" and by_hand.policy.finished
    by_hand.open(4, {})
    assert by_hand.run() == [crashed] and by_hand.policy.finished


def test_a_run_whose_weights_are_lost_runs_again():
    by_hand = ByHand()
    by_hand.run()
    wanted = by_hand.policy.testable_runs()
    assert len(wanted) == 12
    by_hand.append(WeightsMissing(trial_id=wanted[5], method="at", model="A"))
    assert by_hand.run() == [wanted[5]]


def test_the_earliest_of_equals_is_so_by_number():
    by_hand = ByHand(cells={("at", "A"): ["at-A-1000", "at-A-999"]})
    by_hand.run()
    assert by_hand.choices() == {("at", "A"): "at-A-999"}


def test_where_all_diverged_the_one_with_sound_runs_is_chosen_or_none():
    by_hand = ByHand()
    by_hand.run(state=lambda run: "diverged" if "at" in run or run[-1] == "2" else "finished")
    assert by_hand.choices() == {("kd", "A"): "kd-A-000"}


def test_more_seeds_are_for_what_was_chosen_and_new_cells_get_all():
    by_hand = ByHand()
    by_hand.run()
    assert len(by_hand.choices()) == 2
    by_hand.open(5, {("at", "B"): ["at-B-001"]})
    by_hand.policy.trial_configs["at-B-001"] = {"method": "at", "model": "A"}
    assert by_hand.run() == [
        "at-A-001-seed4", "at-A-001-seed5", "kd-A-000-seed4", "kd-A-000-seed5",
        *(make_run_id("at-B-001", seed) for seed in range(1, 6)),
    ]  # fmt: skip
    assert by_hand.choices() == {("at", "B"): "at-B-001"}


def test_a_run_that_fails_is_repeated_once():
    by_hand = ByHand(cells={("at", "A"): ["at-A-004"]})
    by_hand.append(by_hand.policy.propose(("at", "A")))
    events = []

    def append(event):
        events.append(event)
        by_hand.append(event)

    scheduler = LogScheduler(by_hand.policy, append, Slots({"A": ResourceRequest()}, lambda: []))
    trial = SimpleNamespace(config={"trial_id": "at-A-004-seed1"})
    failure = to_ray(TrialFailed(failure="crashed", reason="ValueError: no"))
    for _ in range(2):
        scheduler.on_trial_result(None, trial, failure)
    restarted, ended = events
    assert isinstance(restarted, TrialRestarted) and restarted.cause == "trial_error"
    assert isinstance(ended, TrialEnded) and ended.state == "crashed"


def test_a_run_that_was_not_proposed_is_refused():
    event = ByHand().policy.propose(("at", "A"))
    for changes in ({"trial_id": "at-A-004-seed9"}, {"candidate": "at-A-999"}):
        with pytest.raises(ValueError, match="there is no run"):
            ByHand().append(event.model_copy(update=changes))


def test_the_best_sound_trials_of_each_cell_the_slowest_student_first():
    sweep = Sweep().search("at", "A", 0.5, 0.7, "diverged", 0.7).search("kd", "A", 0.8)
    sweep.events += [proposed("at-B-000"), epoch("at-B-000", 1, 0.1, seconds=99.0)]
    sweep.events += [ended("at-B-000", "stopped")]
    sweep.events += [proposed("kd-C-000"), ended("kd-C-000", "crashed")]
    assert list(best_trials(sweep.tables.trials, 2).items()) == [
        (("at", "B"), ["at-B-000"]), (("kd", "A"), ["kd-A-000"]),
        (("at", "A"), ["at-A-001", "at-A-003"]),
    ]  # fmt: skip


def test_candidates_are_settings_by_the_mean_of_their_runs():
    sweep = Sweep().search("at", "A", 0.8, 0.7, 0.6).repeat("at", "A", 0, 0.5)
    assert best_trials(sweep.tables.trials, 9) == {
        ("at", "A"): ["at-A-001", "at-A-000", "at-A-002"]
    }
    sweep.model("at", "A", t2=0.66, t0=0.65)
    assert best_trials(sweep.tables.trials, 2) == {("at", "A"): ["at-A-002", "at-A-000"]}


# Test images


@pytest.fixture(scope="module")
def split_folder(tmp_path_factory):
    """Digits in folders train, val and test; 10, 5 and 10 of each class."""
    root = tmp_path_factory.mktemp("split")
    for name, count, first in (("train", 10, 0), ("val", 5, 10), ("test", 10, 15)):
        write_digits(root / name, count, first)
    return root


def test_a_trial_of_a_search_opens_no_test_image(split_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("KDTUNE_CACHE", str(tmp_path))
    about = {"method": "student", "data_dir": str(split_folder), "image_size": 8, "epochs": 1}
    config = TrainConfig.parse({**about, "skip_bad_images": True}).model_dump()
    opened, trial = [], run_trial(config)

    def record(name, args):  # a hook stays as long as the process
        if name == "open" and trial is not None:
            opened.append(str(args[0]))

    sys.addaudithook(record)
    assert all(result.kind != "trial_failed" for result in trial)
    trial = None
    assert sum("/train/" in path for path in opened) >= 100
    assert not [path for path in opened if "/test/" in path]


def test_the_data_of_a_search_have_no_test_images(split_folder):
    data = find_images(str(split_folder))
    searched = data.without_test()
    assert data.test is not None and searched.test is None
    assert searched.fingerprint == data.fingerprint and not searched.test_fingerprint
    with pytest.raises(KeyError):
        DecodedDataset(searched, 8, None).pixels("test")


def test_groups_come_from_a_file_beside_the_images(split_folder, tmp_path):
    root = shutil.copytree(split_folder, tmp_path / "data")
    assert load_test_groups(find_images(str(root))) is None
    images = sorted((root / "test").rglob("*.png"))
    lines = [f"{path.relative_to(root)},patient {i // 5}" for i, path in enumerate(images)]
    (root / "groups.csv").write_text("\n".join(["file,group", *lines]))
    groups = load_test_groups(find_images(str(root)))
    assert len(groups) == len(images) and len(set(groups)) == len(images) // 5
    (root / "groups.csv").write_text("\n".join(["file,group", *lines[1:]]))
    with pytest.raises(UserError, match=r"has no group for the test image test/digit-0/"):
        load_test_groups(find_images(str(root)))
    one = [line.split(",")[0] + ",same" for line in lines]
    (root / "groups.csv").write_text("\n".join(["file,group", *one]))
    with pytest.raises(UserError, match="has one group for all test images"):
        load_test_groups(find_images(str(root)))
    (root / "groups.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="must be a CSV file with the columns file and group"):
        load_test_groups(find_images(str(root)))


# Whole confirmations


@pytest.fixture(scope="module")
def confirmed(ray_session, split_folder, tmp_path_factory):
    """A sweep of two cells that was confirmed, one trial at a time, undisturbed."""
    place = tmp_path_factory.mktemp("confirmed")
    with chdir(place):
        sweep = run_sweep(
            {
                "name": "x", "data": str(split_folder), "methods": ["student"],
                "models": ["MultiBranchNet"], "baselines": False, "image_size": 8,
                "trials": 3, "epochs": 2, "scheduler": "none", "cpus_per_trial": 2,
                "settings": {"batch_size": 16}, "confirm": True, "top": 2, "seeds": 3,
            }
        )  # fmt: skip
    return SweepFolder(place / sweep.path)


@pytest.fixture
def copy(confirmed, tmp_path):
    return SweepFolder(shutil.copytree(confirmed.path, tmp_path / "results" / "x"))


def runs_of(sweep):
    """Return the table of the runs of a confirmation, without times."""
    return pd.read_csv(sweep.path / "runs.csv").drop(columns=["device_seconds", "restarts"])


@pytest.mark.slow
class TestConfirmed:
    def test_test_images_are_read_for_what_was_chosen_alone(self, confirmed, split_folder):
        events = confirmed.load_confirm_events()
        [choice] = [event for event in events if isinstance(event, CandidateChosen)]
        runs = runs_of(confirmed)
        assert len(runs) == 6 and set(runs.seed) == {1, 2, 3}
        assert list(runs.chosen) == list(runs.trial_id == choice.candidate)
        assert list(runs.test_accuracy.notna()) == list(runs.chosen)
        means = runs.groupby("trial_id").best_validation_accuracy.mean()
        assert means[choice.candidate] == means.max()
        kinds = [type(event) for event in events]
        assert kinds.index(CandidateChosen) < kinds.index(RunTested) and kinds[-1] is Completed
        _, *later_events = confirmed.load_events()
        assert not any("test" in key for e in later_events for key in type(e).model_fields)

    def test_what_is_kept_gives_the_recorded_figures(self, confirmed, split_folder):
        right, groups = confirmed.load_image_scores()
        runs = runs_of(confirmed).set_index("run_id")
        assert groups is None and len(right) == 3
        data = find_images(str(split_folder))
        pixels = DecodedDataset(data, 8, None).pixels("test")
        for run, correct in right.items():
            assert runs.test_accuracy[run] == correct.mean()
            network = load_model(confirmed.network_path(run))
            assert network["validation_accuracy"] == runs.best_validation_accuracy[run]
            assert len(correct) == len(pixels) == 100
        assert {p.suffix for p in confirmed.confirm_folder.iterdir()} == {".pth", ".npz"}
        assert len(list(confirmed.confirm_folder.glob("*.pth"))) == 3

    def test_the_best_run_of_what_was_chosen_stands_for_the_cell(
        self, confirmed, tmp_path, monkeypatch
    ):
        runs = runs_of(confirmed)
        best = runs[runs.chosen].best_validation_accuracy.max()
        monkeypatch.chdir(tmp_path)
        again = train_from_file(confirmed.best_path("student", "MultiBranchNet"))
        assert again["recorded_accuracy"] == again["best_accuracy"] == best
        network = load_model(confirmed.best_path("student", "MultiBranchNet", ".pth"))
        assert network["validation_accuracy"] == best

    def test_the_leaderboard_has_what_was_confirmed(self, confirmed):
        [row] = pd.read_csv(confirmed.path / "leaderboard.csv").itertuples()
        runs = runs_of(confirmed)
        chosen = runs[runs.chosen]
        assert (row.status, row.seeds_finished, row.test_images) == ("ok", 3, 100)
        assert row.trial_id == chosen.trial_id.iloc[0]
        assert row.test_accuracy_percent == pytest.approx(100 * chosen.test_accuracy.mean())
        assert row.confirm_epochs == 12 and row.parameters > 0 and row.latency_ms > 0

    def test_every_table_can_be_shown(self, confirmed):
        shown = {
            name: table_text(confirmed.path, name, "csv")
            for name in ("trials", "epochs", "leaderboard", "runs", "settings", "search_curve")
        }
        for name, text in shown.items():
            assert (confirmed.path / f"{name}.csv").read_text() == text
        assert "MultiBranchNet" in table_text(confirmed.path, "models", "markdown")
        with pytest.raises(UserError, match="has no table 'x'; there are trials, epochs, leader"):
            table_text(confirmed.path, "x", "table")

    def test_where_the_log_ends_the_rest_is_the_same(self, confirmed, copy, capsys):
        lines = copy.confirm_log_path.read_bytes().splitlines(keepends=True)
        copy.confirm_log_path.write_bytes(b"".join(lines[:9]) + b'{"torn')
        known = {e.trial_id for e in copy.load_confirm_events() if isinstance(e, TrialEnded)}
        for network in copy.confirm_folder.iterdir():  # as when its driver was killed
            if network.stem not in known:
                network.unlink()
        copy.best_path("student", "MultiBranchNet", ".pth").unlink()
        confirm_sweep(copy.path)
        assert 0 < len(known) < 6 and runs_of(copy).equals(runs_of(confirmed))
        assert load_model(copy.best_path("student", "MultiBranchNet", ".pth"))
        assert "6 bytes after the log's last event" in capsys.readouterr().err

    def test_what_matters_can_be_said_afterwards(self, copy, capsys):
        before = len(copy.load_confirm_events())
        confirm_sweep(copy.path, {"min_difference": 30.0})
        kinds = [type(event) for event in copy.load_confirm_events()[before:]]
        assert kinds == [ConfirmStarted, Completed]
        confirm_sweep(copy.path)
        assert len(copy.load_confirm_events()) == before + 2
        said = f"nothing left to train: the confirmation of {copy.path} is complete"
        assert capsys.readouterr().err.count(said) == 2

    def test_more_seeds_are_added_to_what_was_chosen(self, confirmed, copy, split_folder):
        before = runs_of(confirmed)
        confirm_sweep(copy.path, {"seeds": 4, "data": os.path.relpath(split_folder)})
        runs = runs_of(copy)
        assert runs[: len(before)].equals(before)
        [new] = runs[len(before) :].itertuples()
        assert new.chosen and new.seed == 4 and 0 < new.test_accuracy <= 1
        for given, said in (
            ({"seeds": 3}, "There are already 4 seeds"),
            ({"top": 3}, "The candidates are the best 2 of each cell and stay so"),
        ):
            with pytest.raises(UserError, match=said):
                confirm_sweep(copy.path, given)

    def test_it_must_be_complete_and_the_test_images_the_same(self, copy, split_folder, tmp_path):
        data = shutil.copytree(split_folder, tmp_path / "data")
        next((data / "test" / "digit-3").iterdir()).unlink()
        with pytest.raises(UserError, match="test images are not those with which the confirm"):
            confirm_sweep(copy.path, {"data": str(data), "seeds": 4})
        shutil.rmtree(data / "test")
        with pytest.raises(UserError, match="have no test images, on which a sweep is confirmed"):
            confirm_sweep(copy.path, {"data": str(data), "seeds": 4})
        lines = copy.log_path.read_bytes().splitlines(keepends=True)
        copy.log_path.write_bytes(b"".join(lines[:-1]))
        with pytest.raises(UserError, match="is not complete: run kdtune resume"):
            confirm_sweep(copy.path)


@pytest.mark.parametrize("setting", ["confirm", "until_decided"])
def test_without_test_images_a_sweep_that_is_to_be_confirmed_does_not_start(
    setting, split_folder, tmp_path, monkeypatch
):
    data = shutil.copytree(split_folder, tmp_path / "data", ignore=lambda *_: ["test"])
    monkeypatch.chdir(tmp_path)
    given = {"name": "x", "data": str(data), "methods": ["student"], "baselines": False}
    with pytest.raises(UserError, match="add a folder test/, which the search never sees"):
        run_sweep({**given, setting: True})
    assert not Path("results").exists()
