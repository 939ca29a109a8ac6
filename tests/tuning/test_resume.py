"""Sweeps that are interrupted, broken, moved or changed, and resumed."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import chdir, suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest
import ray
from event_logs import make_metrics, sweep_opening
from fault_campaign import outcomes, read_leaderboard
from sweep_harness import EPOCHS, SweepHarness

from kdtune.config.sweep import SweepConfig
from kdtune.errors import RunError, UserError
from kdtune.log.event_log import EventLog
from kdtune.log.events import (
    Completed,
    EpochFinished,
    SweepResumed,
    SweepStarted,
    TrialEnded,
    TrialProposed,
    TrialRestarted,
)
from kdtune.log.folder import RESULTS_FOLDER, SweepFolder
from kdtune.tuning.cluster.placement import ResourceRequest, Slots
from kdtune.tuning.cluster.session import LivingNodes, run_trials
from kdtune.tuning.display.screen import Screen
from kdtune.tuning.driver.driver import Workplace
from kdtune.tuning.driver.preflight import prepare_sweep
from kdtune.tuning.driver.resume_rules import build_resume_config
from kdtune.tuning.search.space import load_spaces
from kdtune.tuning.sweep import resume_sweep, run_sweep
from kdtune.tuning.trials.results import EpochReported, TrialFailed
from kdtune.tuning.trials.trial_process import TrialProcess


@pytest.fixture(scope="module")
def whole(ray_session, folder, teacher_file, tmp_path_factory):
    """Two cells of two trials, one trial at a time, undisturbed."""
    place = tmp_path_factory.mktemp("whole")
    with chdir(place):
        sweep = run_sweep(
            {
                "name": "whole", "data": str(folder), "teacher": str(teacher_file),
                "methods": ["at", "student"], "models": ["MultiBranchNet"], "baselines": False,
                "trials": 2, "epochs": 3, "grace_period": 1, "cpus_per_trial": 2,
                "settings": {"batch_size": 16},
            }
        )  # fmt: skip
    return SweepFolder(place / sweep.path)


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of its folder, as on another machine."""
    return SweepFolder(shutil.copytree(whole.path, tmp_path / "copy"))


def cut(sweep, events):
    """Leave so many events of its log, and nothing that was made from it."""
    lines = sweep.log_path.read_bytes().splitlines(keepends=True)
    sweep.log_path.write_bytes(b"".join(lines[:events]))
    for path in (sweep.path / "best", sweep.tensorboard_folder):
        shutil.rmtree(path)
    for path in sweep.path.glob("*.csv"):
        path.unlink()


@pytest.mark.slow
class TestResume:
    def test_a_cut_log_resumes_to_the_same_results(self, whole, copy, capsys):
        events = 6
        cut(copy, events)
        there = copy.log_path.read_bytes()
        resume_sweep(copy.path)
        assert copy.log_path.read_bytes().startswith(there)
        assert outcomes(copy) == outcomes(whole)
        assert read_leaderboard(copy).equals(read_leaderboard(whole))
        for method in ("at", "student"):
            assert copy.best_path(method, "MultiBranchNet").is_file()
        ended = len(of_kind(whole.load_events()[:events], TrialEnded))
        said = capsys.readouterr().err
        assert f"{ended} trials have ended" in said
        assert said.count("] at-") + said.count("] student-") == 4 - ended

    def test_resuming_a_complete_sweep_writes_its_tables_again(self, whole, copy, capsys):
        before = copy.log_path.read_bytes()
        assert isinstance(copy.load_events()[-1], Completed)
        for path in copy.path.glob("*.csv"):
            path.unlink()
        resume_sweep(copy.path)
        said = capsys.readouterr().err
        assert f"nothing left to train: the search of {copy.path} is complete" in said
        assert copy.log_path.read_bytes() == before
        assert read_leaderboard(copy).equals(read_leaderboard(whole))

    def test_more_trials_and_cells_with_data_and_teacher_elsewhere(
        self, copy, folder, teacher_file, tmp_path
    ):
        moved = {
            "data": str(shutil.copytree(folder, tmp_path / "moved")),
            "teacher": str(shutil.copy(teacher_file, tmp_path / "other.pth")),
        }
        resume_sweep(copy.path, {**moved, "trials": 3, "baselines": True, "cpus_per_trial": 1})
        ends = [event.trial_id for event in of_kind(copy.load_events(), TrialEnded)]
        assert sorted(ends) == sorted(
            f"{method}-MultiBranchNet-{n:03d}" for method in ("at", "kd", "student")
            for n in range(3)
        )  # fmt: skip
        openings = copy.load_opening_events()
        assert [type(event) for event in openings] == [SweepStarted, SweepResumed]
        assert openings[1].config["data"] == moved["data"]
        new = of_kind(copy.load_events(), TrialProposed)[-1].config
        assert (new["data_dir"], new["teacher_model"]) in [(moved["data"], x) for x in
                                                          (moved["teacher"], None)]  # fmt: skip
        best = (copy.path / "best" / "at-MultiBranchNet.yaml").read_text()
        assert moved["data"] in best and moved["teacher"] in best


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 9}, "The setting epochs cannot be changed when a sweep is resumed"),
        ({"baselines": False}, "has the cell student-M: on resume"),
        ({"sampler": "tpe"}, "The sweep's sampler is auto and cannot be changed"),
        ({"trials": 0}, "The setting trials cannot be 0"),
    ],
)
def test_what_cannot_change_is_a_sentence(changes, sentence):
    opening = sweep_opening(methods=["at", "kd"], models=["M"], baselines=True)
    with pytest.raises(UserError, match=sentence):
        build_resume_config(opening, changes)


def test_methods_and_models_are_added():
    opening = sweep_opening(methods=["at"], models=["M"])
    sweep = build_resume_config(opening, {"methods": "kd", "models": "N"})
    assert sweep.cells() == [("at", "M"), ("at", "N"), ("kd", "M"), ("kd", "N")]


def test_a_sampler_that_is_code_must_be_named_by_the_user():
    opening = sweep_opening(sampler="evil.Sampler")
    with pytest.raises(UserError, match="is not run: if you trust it, give --sampler evil.Sam"):
        build_resume_config(opening, {})
    assert build_resume_config(opening, {"sampler": "evil.Sampler"}).sampler == "evil.Sampler"


FUNCTION = '''"""A function."""
from pathlib import Path
Path("ran").touch()
METHOD, START = "student", []
def SPACE(trial):
    trial.suggest_float("lr", 0.01, 0.1)
'''


def test_code_runs_only_from_files_that_the_user_names(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("space.py").write_text(FUNCTION)
    config = {
        "name": "x", "data": str(folder), "methods": ["student"], "baselines": False,
        "models": ["MultiBranchNet"], "image_size": 8, "spaces": ["space.py"],
    }  # fmt: skip
    requested = SweepConfig.parse(config)
    opening = prepare_sweep(requested, requested.spaces).opening_event
    sweep = SweepFolder(tmp_path / "x")
    with sweep.create_atomically() as part, EventLog(part.log_path, []) as log:
        log.append(opening)
    Path("ran").unlink()
    said = r"code that a log names is not run: .*--space .*space\.py"
    with pytest.raises(UserError, match=said):
        resume_sweep("x")
    assert not Path("ran").exists()
    again = prepare_sweep(
        build_resume_config(opening, {"spaces": ["space.py"]}), ("space.py",), opening
    )
    assert again.spaces["student"].define_by_run is not None and Path("ran").exists()


@pytest.mark.slow
def test_spaces_of_numbers_come_from_the_log(whole):
    opening = whole.load_opening_events()[0]
    spaces = prepare_sweep(build_resume_config(opening, {}), (), opening).spaces
    for method, space in load_spaces().items():
        if method in spaces:
            fixed = space.with_constants({"batch_size": 16})
            assert spaces[method].distributions == fixed.distributions
            assert spaces[method].constants == fixed.constants
            assert spaces[method].start_points == fixed.start_points


@pytest.mark.slow
def test_other_data_or_another_teacher_is_a_sentence(whole, copy, folder, tmp_path):
    more = shutil.copytree(folder, tmp_path / "data")
    next((more / "digit-0").iterdir()).unlink()
    said = r"140\+30\+30 images then \(training, validation, test\), 1\d\d\+.* now"
    with pytest.raises(UserError, match=said):
        resume_sweep(copy.path, {"data": str(more)})
    network = whole.best_path("student", "MultiBranchNet", ".pth")
    with pytest.raises(UserError, match="teacher is not the one with which the sweep started"):
        resume_sweep(copy.path, {"teacher": str(network)})


@pytest.mark.slow
@pytest.mark.parametrize("room", [100, 3_000, 8_000, 100_000])
def test_tables_without_room_are_a_sentence_and_no_file_is_damaged(copy, room):
    before = {p: p.read_bytes() for p in copy.path.rglob("*") if p.is_file()}
    copy.best_path("at", "MultiBranchNet", ".pth").unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        if room < 10_000:
            with pytest.raises(RunError, match="no room to write .*; make room. Nothing is lost"):
                Workplace(copy, Screen("quiet"), "kdtune resume").write_results()
        else:
            Workplace(copy, Screen("quiet"), "kdtune resume").write_results()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for path, content in before.items():
        if path.suffix != ".pth":  # a copy's name is another
            assert path.read_bytes().replace(b": copy", b": whole") == content


# Processes that die, hang, or lack memory

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


def first_time(marks, name):
    """Return True the first time that this is called with a name, in any process."""
    try:
        (marks / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def of_kind(events, kind):
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.slow
def test_trials_that_die_hang_or_lack_memory_restart(ray_session, tmp_path):
    template = make_metrics(1, 0.5, seconds=0.01)

    class Troubled(TrialProcess):
        def iter_results(self, trial_id, config):
            cpus = ray.get_runtime_context().get_assigned_resources()["CPU"]
            if cpus < 2 and trial_id == "kd-A-002":
                yield TrialFailed(failure="out_of_memory", reason="out of memory")
            for n in range(1, EPOCHS + 1):
                changes = {"epoch": n, "device": f"{cpus:g} CPUs"}
                yield EpochReported(metrics=template.model_copy(update=changes))
                if n == 2 and trial_id == "kd-A-000" and first_time(self._checkpoints, trial_id):
                    os.kill(os.getpid(), signal.SIGKILL)
                if n == 2 and trial_id == "kd-A-001":
                    time.sleep(1e6)

    harness = SweepHarness(
        tmp_path / "log.jsonl", methods="kd", models="A", sampler="random", trials=3,
        slots=Slots({"A": ResourceRequest()}, LivingNodes()), stall_timeout=3,
    )  # fmt: skip
    watchdog = harness.policy.watchdog
    watchdog.clock = time.monotonic
    (tmp_path / "marks").mkdir()
    process = ray.tune.with_parameters(Troubled, checkpoints=tmp_path / "marks")
    run_trials(process, harness.searcher, harness.scheduler, watchdog)
    assert harness.policy.finished
    events = SweepFolder(tmp_path).load_events()
    restarts = {e.trial_id: (e.cause, e.reason) for e in of_kind(events, TrialRestarted)}
    assert restarts == {
        "kd-A-000": ("process_died", "its process died: killed, or out of memory"),
        "kd-A-001": ("stalled", "no progress for 3 s"),
        "kd-A-002": ("device_memory", "out of memory; it gets the device to itself"),
    }
    ends = {e.trial_id: (e.state, e.reason) for e in of_kind(events, TrialEnded)}
    assert ends.pop("kd-A-001") == ("crashed", "no progress for 3 s, 2 times")
    assert {state for state, _ in ends.values()} == {"finished"} and len(ends) == 2
    devices = {e.trial_id: e.device for e in of_kind(events, EpochFinished)}
    assert devices.pop("kd-A-002") == "2 CPUs" and set(devices.values()) == {"1 CPUs"}


# Real drivers, and signals


def start(place, *words):
    """Start a command as a process, and wait for two further epochs in the log."""
    sweep = SweepFolder(place / RESULTS_FOLDER / "x")

    def epochs():
        return len(of_kind(sweep.load_events(), EpochFinished)) if sweep.log_path.is_file() else 0

    there, deadline = epochs(), time.monotonic() + 120
    driver = subprocess.Popen(
        [sys.executable, "-m", "kdtune", *words],
        cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    while epochs() < there + 2:
        assert time.monotonic() < deadline and driver.poll() is None
        time.sleep(0.02)
    return driver, sweep


def end(driver, number):
    """Send a signal to the group, as terminals and `timeout` do; return the process's last words.

    None of its processes is left.
    """
    children = psutil.Process(driver.pid).children(recursive=True)
    os.killpg(driver.pid, number)
    with driver:
        _, err = driver.communicate(timeout=100)
    assert "Traceback" not in err
    assert psutil.wait_procs(children, timeout=20)[1] == []
    return err


@pytest.mark.slow
def test_a_sigterm_to_all_processes_ends_a_sweep_before_slurm_kills(folder, tmp_path):
    """scancel and systemd signal Ray's processes, too, which may end the driver by themselves."""
    words = f"sweep --name x --data {folder} --image-size 8 --methods student --no-baselines"
    words += " --models MultiBranchNet --trials 2 --epochs 999"
    driver, sweep = start(tmp_path, *words.split())
    began, children = time.monotonic(), psutil.Process(driver.pid).children(recursive=True)
    os.killpg(driver.pid, signal.SIGTERM)
    for process in children:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    with driver:
        driver.communicate(timeout=100)
    assert time.monotonic() - began < 30
    assert psutil.wait_procs(children, timeout=20)[1] == []
    assert sweep.is_locked() is False
    assert not of_kind(sweep.load_events(), TrialEnded)


@pytest.mark.slow
def test_a_sweep_that_signals_stopped_is_resumed_and_listens_to_this_machine_alone(
    ray_session, folder, tmp_path, capsys
):
    words = f"sweep --name x --data {folder} --image-size 8 --methods student --no-baselines"
    words += " --models MultiBranchNet --trials 2 --epochs 999"
    driver, sweep = start(tmp_path, *words.split())
    own, addresses = psutil.Process(driver.pid), set()
    for process in [own, *own.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            listening = (c for c in process.net_connections("tcp") if c.status == "LISTEN")
            addresses |= {c.laddr.ip for c in listening}
    assert addresses and addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    with pytest.raises(UserError, match=f"is being run by process {driver.pid} on"):
        resume_sweep(sweep.path)
    err = end(driver, signal.SIGINT)
    assert driver.returncode == 130
    assert "finishing the running epochs; press Ctrl-C again to stop at once" in err
    assert "0 trials have ended; to continue: kdtune resume results/x" in err
    for trial_id, (_, accuracies, *_) in outcomes(sweep).items():
        [*_, last] = sorted(p.name for p in (sweep.checkpoints_folder / trial_id).iterdir())
        assert last == f"epoch-{len(accuracies):05d}.pth"
    assert set(pd.read_csv(sweep.path / "trials.csv").state) == {"running"}

    driver, _ = start(tmp_path, "resume", "results/x", "--shutdown-grace", "0s")
    err = end(driver, signal.SIGTERM)
    assert driver.returncode == 143 and sweep.is_locked() is False
    assert "2 were running (student-MultiBranchNet-000 after epoch" in err
    assert "to continue: kdtune resume results/x" in err

    trained = sum(len(accuracies) for _, accuracies, *_ in outcomes(sweep).values())
    resume_sweep(sweep.path, {"total_epochs": trained + 2})
    events = sweep.load_events()
    assert [event.state for event in of_kind(events, TrialEnded)] == ["stopped"] * 2
    assert len(of_kind(events, EpochFinished)) == trained + 2
