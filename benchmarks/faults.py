"""Faults that a sweep survives, injected into real processes.

    make bench-faults

A small real sweep (at and fitnets on MultiBranchNet, 600 digits as PNG files; 6 trials a
cell of at most 4 epochs, ASHA after 2) runs with one trial at a time, so that the order of results
is fixed, once undisturbed and then once or several times for each kind of fault. Whenever a driver
dies, or stops because it must, `kdtune resume` goes on. At the end every trial's settings,
accuracies and end, and the leaderboard, are compared with those of the undisturbed sweep, to the
last bit; where the fault is the trial's own (NaN, inf, an exception) it hits a cell's last trial,
which must end with that reason, and nothing else may differ.

* injected: faults that happened;
* survived: after which the sweep came to its end;
* epochs lost: finished epochs of the log that are not in the final log, or are others there;
* differences: trials and rows of the leaderboard that are not as in the undisturbed sweep.

A writer is killed inside: after a random part of a line of the log; after a half of a checkpoint's
bytes; before an array of the cache has its name; before a table has its name. A disk is full by a
limit of the size of files, of the driver, of trials, or of both. A torn tail is tried at every
length of the last line by opening the log, and the rest of the sweep is run for some of them.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import psutil
import torch
from PIL import Image
from sklearn.datasets import load_digits

import kdtune.storage.array_cache
import kdtune.training.loop
import kdtune.tuning.driver.driver
from kdtune.cli.commands import main as kdtune_main
from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.log.event_log import EventLog
from kdtune.log.events import EpochFinished, Event, TrialEnded
from kdtune.log.folder import SweepFolder
from kdtune.log.trial_history import TrialHistory
from kdtune.tuning.driver.driver import Workplace
from kdtune.tuning.scheduling.search_policy import SearchPolicy
from kdtune.tuning.search.space import load_spaces
from kdtune.tuning.trials.results import EpochReported, TrialResult
from kdtune.tuning.trials.trial_process import TrialProcess

SWEEP = (
    "sweep --data data --image-size 8 --methods at,fitnets --models MultiBranchNet --no-baselines "
    "--epochs 4 --grace-period 2 --cpus-per-trial 2 --setting batch_size=64"
)
TEACHER = "teacher --data data --image-size 8 --model MultiBranchNet --epochs 2 --setting lr=0.05"
COLUMNS = ("injected", "survived", "epochs lost", "differences")
Fault = dict[str, Any]


# What happens in the process that is hit


class FaultyTrialProcess(TrialProcess):
    """A trial process in which a fault waits."""

    def iter_results(
        self, trial_id: str, config: dict[str, Any]
    ) -> Generator[TrialResult, None, None]:
        """Yield the results up to the fault."""
        fault = json.loads(os.environ["KDTUNE_FAULT"])
        with contextlib.ExitStack() as stack:
            stack.callback(patch.stopall)  # the next trial trains as usual
            if fault.get("where") == "checkpoint":
                _break_checkpoints(fault, stack)
            if fault.get("where") == "full checkpoint":
                _limit_file_size(fault["bytes"])
                stack.callback(_limit_file_size, None)
            for result in super().iter_results(trial_id, config):
                yield result
                epoch = result.metrics.epoch if isinstance(result, EpochReported) else 0
                if fault.get("trial") in (trial_id, "any") and epoch == fault["epoch"]:
                    if _claim_occurrence(fault):
                        _inject(fault["do"])


def _claim_occurrence(fault: Fault) -> bool:
    """Return True if the fault may happen once more."""
    marks = Path(fault["marks"])
    count = len(list(marks.iterdir()))
    if count >= fault.get("times", 1):
        return False
    (marks / str(count)).touch()
    return True


def _inject(action: str) -> None:
    if action == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "hang":
        time.sleep(1e6)
    else:
        patch.object(kdtune.training.loop, "train_epoch", partial(_spoiled_pass, action)).start()


def _spoiled_pass(action: str, *arguments: Any, **keywords: Any) -> dict[str, float]:
    if action == "raise":
        raise RuntimeError("injected")
    return {"loss": float(action), "accuracy": 0.0}


def _limit_file_size(size: int | None) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def _break_checkpoints(fault: Fault, stack: contextlib.ExitStack) -> None:
    save, calls = torch.save, [0]

    def broken(content: Any, file: Any) -> None:
        calls[0] += 1
        save(content, file)
        if calls[0] == fault["call"] and _claim_occurrence(fault):
            file.flush()
            file.truncate(file.tell() // 2)
            if fault["driver too"]:
                os.kill(int(os.environ["KDTUNE_DRIVER"]), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

    stack.callback(_patch, torch, "save", save)
    _patch(torch, "save", broken)


def _patch(owner: object, name: str, value: object) -> None:
    setattr(owner, name, value)


def _die_at(call: int, function: Callable[..., Any], before: Callable[..., Any]) -> Any:
    """Return the function, whose given call runs `before` and kills the process."""
    calls = [0]

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            before(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)

    return wrapped


def _install(fault: Fault) -> None:
    """Install a fault in this process, which will be a driver."""
    where, call = fault.get("where"), fault.get("call", 0)
    if where == "log":

        def part(log: EventLog, line: bytes) -> None:
            os.write(log._file.fileno(), line[: int(fault["share"] * len(line))])

        _patch(EventLog, "_write_line", _die_at(call, EventLog._write_line, part))
    elif where == "view":
        commit = kdtune.storage.array_cache._commit_array
        dying = _die_at(call, commit, lambda *_: None)
        _patch(kdtune.storage.array_cache, "_commit_array", dying)
    elif where == "table":
        _patch(Path, "replace", _die_at(call, Path.replace, lambda *_: None))
    elif where == "full view":
        build = kdtune.storage.array_cache.ArrayCache._build_arrays

        def without_room_for_views(*arguments: Any) -> None:
            _limit_file_size(fault["bytes"])
            build(*arguments)

        _patch(kdtune.storage.array_cache.ArrayCache, "_build_arrays", without_room_for_views)
    elif where == "full driver":
        original_init = EventLog.__init__

        def limited(log: EventLog, *arguments: Any) -> None:
            original_init(log, *arguments)
            if log.path.parent.name[:1] != ".":  # the folder has its name
                _limit_file_size(max(fault["bytes"], log._valid_bytes + fault["bytes"]))

        _patch(EventLog, "__init__", limited)
    elif where == "full tables":
        write_results = Workplace.write_results

        def without_room(workplace: Workplace) -> None:
            _limit_file_size(fault["bytes"])
            write_results(workplace)

        _patch(Workplace, "write_results", without_room)
    elif where == "clock":
        original_clock = time.time
        shift = [0.0]

        def stepped() -> float:
            shift[0] -= random.choice((0, 3600))
            return original_clock() + shift[0]

        _patch(time, "time", stepped)


def run_with_fault(fault: Fault, arguments: list[str]) -> None:
    """Run `kdtune` with a fault."""
    os.environ["KDTUNE_FAULT"], os.environ["KDTUNE_DRIVER"] = json.dumps(fault), str(os.getpid())
    _install(fault)
    _patch(kdtune.tuning.driver.driver, "TrialProcess", FaultyTrialProcess)
    sys.argv = ["kdtune", *arguments]
    kdtune_main()


# The campaign


class Campaign:
    """Runs sweeps in a folder, and keeps count.

    Args:
        place: the folder.
        trials: of each cell.
    """

    def __init__(self, work_folder: Path, trials_per_cell: int):
        self.work_folder, self.trials_per_cell = work_folder, trials_per_cell
        self.last_trial = f"at-MultiBranchNet-{trials_per_cell - 1:03d}"
        """The last trial of a cell: what happens to it changes no other."""
        self.counts: dict[str, Counter[str]] = {}
        write_digits(work_folder / "data", 60)
        self.teacher = work_folder / "teacher.pth"
        self._run(None, *TEACHER.split(), "--out", str(self.teacher))
        self.reference = self._sweep_folder("reference")
        assert self._run(None, *self._sweep_arguments("reference")).wait() == 0
        self.expected = outcomes(self.reference)
        self.reference_seconds = self._session_seconds(self.reference)

    def _sweep_arguments(self, name: str) -> list[str]:
        flags = ["--trials", str(self.trials_per_cell), "--teacher", str(self.teacher)]
        return [*SWEEP.split(), *flags, "--name", name]

    def _sweep_folder(self, name: str) -> SweepFolder:
        return SweepFolder(self.work_folder / "results" / name)

    @staticmethod
    def _session_seconds(sweep: SweepFolder) -> float:
        return max(event.session_seconds for event in sweep.load_events())

    def _run(
        self, fault: Fault | None, *arguments: str, cache: str = "cache"
    ) -> "subprocess.Popen[str]":
        command = [sys.executable, __file__, "--child", json.dumps(fault or {}), *arguments]
        errors = open(self.work_folder / "errors.txt", "a")
        environment = {**os.environ, "KDTUNE_CACHE": str(self.work_folder / cache)}
        process = subprocess.Popen(
            command, cwd=self.work_folder, env=environment, text=True,
            stdout=subprocess.DEVNULL, stderr=errors,
        )  # fmt: skip
        if arguments[0] == "teacher":
            process.wait()
        return process

    def new_marks_folder(self) -> str:
        """Return a new folder in which a fault counts how often it happened."""
        return tempfile.mkdtemp(dir=self.work_folder)

    def run_faults(
        self,
        kind: str,
        faults: list[Fault],
        disturb: Callable[["subprocess.Popen[str]", SweepFolder, Fault], bool] | None = None,
        between: Callable[[SweepFolder, Fault], None] | None = None,
        expected_end: str | None = None,
        fresh_cache: bool = False,
        extra_flags: tuple[str, ...] = (),
    ) -> None:
        """Run sweeps until all faults have happened, and then to their end.

        Args:
            kind: the row of the table.
            faults: one for each start of a driver.
            disturb: done to a driver while it runs; says whether it could be done.
            between: done to the folder when a driver has ended.
            expected_end: of the last trial, if it must differ.
            fresh_cache: True to start with an empty cache.
            extra_flags: of the sweep.
        """
        count = self.counts.setdefault(kind, Counter())
        pending_faults, number = list(faults), 0
        while pending_faults:
            number += 1
            name = f"{kind.replace(' ', '-').replace(',', '')}-{number}"
            sweep, previous_epochs = self._sweep_folder(name), dict[tuple[str, int], float]()
            injected, num_stuck = 0, 0
            cache = name if fresh_cache else "cache"
            while True:
                fault = pending_faults.pop(0) if pending_faults else None
                exists = sweep.path.exists()
                arguments = ["resume", str(sweep.path)]
                if not exists:
                    arguments = [*self._sweep_arguments(name), *extra_flags]
                driver = self._run(fault, *arguments, cache=cache)
                happened = fault is not None
                if fault is not None and disturb is not None:
                    happened = disturb(driver, sweep, fault)
                code = driver.wait()
                if fault is not None:
                    if "marks" in fault:
                        happened = any(Path(fault["marks"]).iterdir())
                    elif disturb is None:
                        happened = code != 0
                    if happened:
                        injected += 1
                        if between is not None and sweep.path.exists():
                            between(sweep, fault)
                    elif (fault := {**fault, "tries": fault.get("tries", 0) + 1})["tries"] < 4:
                        pending_faults.append(fault)  # the sweep was over before
                count["epochs lost"] += len(
                    previous_epochs.items() - logged_accuracies(sweep).items()
                )
                previous_epochs = logged_accuracies(sweep)
                if code == 0:
                    break
                num_stuck = 0 if fault is not None else num_stuck + 1
                if num_stuck == 3:  # it should have come to its end
                    break
            count["injected"] += injected
            if num_stuck < 3:
                count["survived"] += injected
                count["differences"] += self._differences(sweep, expected_end)
        self._print_row(kind)

    def _differences(self, sweep: SweepFolder, expected_end: str | None) -> int:
        actual, expected = outcomes(sweep), dict(self.expected)
        num_wrong: int = 0
        if expected_end is not None:
            state, reason = actual.pop(self.last_trial)[2:]
            num_wrong += int(not f"{state}: {reason}".startswith(expected_end))
            del expected[self.last_trial]
        keys = actual.keys() | expected.keys()
        num_wrong += sum(bool(actual.get(key) != expected.get(key)) for key in keys)
        if expected_end is None:
            same = read_leaderboard(sweep).equals(read_leaderboard(self.reference))
            num_wrong += int(not same)
        return num_wrong

    def _print_row(self, kind: str) -> None:
        count = self.counts[kind]
        print(f"| {kind} | {' | '.join(str(count[c]) for c in COLUMNS)} |", flush=True)

    def tear_log_tail(self) -> None:
        """Tear the last end of a trial in the undisturbed log at every length, and open it."""
        kind, log = "torn tail, log opened", self.work_folder / "torn.jsonl"
        count = self.counts.setdefault(kind, Counter())
        *lines, _ = self.reference.log_path.read_bytes().splitlines(
            keepends=True
        )  # it was complete
        content, events = b"".join(lines), self.reference.load_events()[:-1]
        torn = events[-1]
        assert isinstance(torn, TrialEnded)
        last_start = content.rstrip(b"\n").rfind(b"\n") + 1
        sweep = SweepConfig.parse(self.reference.load_opening_events()[0].config)
        for length in range(len(content) - last_start):
            log.write_bytes(content[: last_start + length])
            events_read: list[Event] = []
            policy = SearchPolicy(sweep, load_spaces(), lambda *_: TrainConfig.parse({}))
            with EventLog(log, [*policy.folds, events_read.append]):
                count["injected"] += 1
            count["survived"] += events_read == events[:-1]
            count["differences"] += list(policy.active_trials.by_id) != [torn.trial_id]
        self._print_row(kind)


def write_digits(root: Path, per_class: int) -> None:
    """Write real digits as PNG, as one folder of classes."""
    digits, counts = load_digits(), Counter[int]()
    for image, label in zip(digits.images, digits.target, strict=True):
        if counts[label] < per_class:
            path = root / f"digit-{label}" / f"{counts[label]:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 15).astype("uint8")).save(path)
        counts[label] += 1


def outcomes(sweep: SweepFolder) -> dict[str, Any]:
    """Return settings, accuracies, state and reason of each trial."""
    return {
        trial_id: [
            json.dumps(trial.proposed.config, sort_keys=True),
            [epoch.validation_accuracy for epoch in trial.epochs],
            str(trial.state),
            trial.ended.reason if trial.ended else "",
        ]
        for trial_id, trial in TrialHistory(sweep.load_events()).trials.items()
    }


def logged_accuracies(sweep: SweepFolder) -> dict[tuple[str, int], float]:
    """Accuracies of all finished epochs."""
    if not sweep.log_path.is_file():
        return {}
    logged = [event for event in sweep.load_events() if isinstance(event, EpochFinished)]
    return {(e.trial_id, e.epoch): e.validation_accuracy for e in logged}


def read_leaderboard(sweep: SweepFolder) -> pd.DataFrame:
    """Return the leaderboard without times."""
    leaderboard = pd.read_csv(sweep.path / "leaderboard.csv")
    return leaderboard.drop(columns="search_device_seconds")


def kill_later(driver: "subprocess.Popen[str]", sweep: SweepFolder, fault: Fault) -> bool:
    """Kill a driver after some seconds."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        driver.wait(fault["after"])
        return False
    driver.kill()
    return True


def wait_for_epochs(driver: "subprocess.Popen[str]", sweep: SweepFolder, fault: Fault) -> bool:
    """Wait until this driver has logged so many epochs; false if it ended before."""
    num_before = len(logged_accuracies(sweep))
    while driver.poll() is None:
        if len(logged_accuracies(sweep)) >= num_before + fault["epochs"]:
            return True
        time.sleep(0.02)
    return False


def find_child_processes(pid: int, pattern: str) -> list[psutil.Process]:
    """Return descendants of a process whose command contains a word."""
    matching = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if pattern in " ".join(process.cmdline()):
                matching.append(process)
    return matching


def kill_child(driver: "subprocess.Popen[str]", sweep: SweepFolder, fault: Fault) -> bool:
    """Kill a process below the driver, once it has logged some epochs."""
    if wait_for_epochs(driver, sweep, fault):
        for process in find_child_processes(driver.pid, fault["part"])[:1]:
            process.kill()
            return True
    return False


def kill_after_epochs(driver: "subprocess.Popen[str]", sweep: SweepFolder, fault: Fault) -> bool:
    """Kill the driver, once it has logged some epochs."""
    if wait_for_epochs(driver, sweep, fault):
        driver.kill()
        return True
    return False


def main() -> None:
    """Run the campaign, or a part of it, and print the table."""
    parser = argparse.ArgumentParser(description="See the top of this file.")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.add_argument("--kills", type=int, default=50, help="of the driver, at any moment")
    parser.add_argument("--each", type=int, default=6, help="faults of most other kinds")
    parser.add_argument("--trials", type=int, default=6, help="of each cell")
    parser.add_argument("--jobs", type=int, default=2, help="sweeps at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="kinds that begin so")
    arguments = parser.parse_args()
    if arguments.child:
        run_with_fault(json.loads(arguments.child[0]), arguments.child[1:])
        return
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as work_folder:
        campaign = Campaign(Path(work_folder), arguments.trials)
        print(f"| fault | {' | '.join(COLUMNS)} |\n" + "|---" * 5 + "|", flush=True)
        rows = list(build_rows(campaign, arguments.kills, arguments.each, arguments.seed))
        with ThreadPoolExecutor(arguments.jobs) as pool:
            futures = [
                pool.submit(run_row)
                for name, run_row in rows
                if name.startswith(arguments.only or "")
            ]
            for future in futures:
                future.result()
        total = sum(campaign.counts.values(), Counter[str]())
        print(json.dumps({name.replace(" ", "_"): total[name] for name in COLUMNS}))


def build_rows(
    campaign: Campaign, kills: int, each: int, seed: int
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every kind of fault, with what injects it."""
    rng = random.Random(seed)

    def make_row(kind: str, faults: list[Fault], **how: Any) -> tuple[str, Callable[[], None]]:
        return kind, partial(campaign.run_faults, kind, faults, **how)

    def make_several(make: Callable[[], Fault]) -> list[Fault]:
        return [make() for _ in range(each)]

    def trial_fault(do: str, **more: Any) -> list[Fault]:
        return [
            {
                "trial": campaign.last_trial,
                "epoch": 1,
                "do": do,
                "marks": campaign.new_marks_folder(),
                **more,
            }
        ]

    def checkpoint_fault(driver_too: bool) -> Fault:
        call, marks = rng.randint(1, 4), campaign.new_marks_folder()
        return {"where": "checkpoint", "call": call, "driver too": driver_too, "marks": marks}

    def append_garbage(sweep: SweepFolder, fault: Fault) -> None:
        with open(sweep.log_path, "ab") as log:
            log.write(bytes(fault["bytes"]))

    def tear_log(sweep: SweepFolder, fault: Fault) -> None:
        content = sweep.log_path.read_bytes()
        last = len(content) - (content.rstrip(b"\n").rfind(b"\n") + 1)
        os.truncate(sweep.log_path, len(content) - 1 - int(fault["share"] * (last - 1)))

    def start_second_driver(
        driver: "subprocess.Popen[str]", sweep: SweepFolder, fault: Fault
    ) -> bool:
        if not wait_for_epochs(driver, sweep, fault):
            return False
        other = campaign._run(None, "resume", str(sweep.path))
        assert other.wait() == 2
        return True

    longest = 12 + campaign.reference_seconds / 2
    yield make_row(
        "driver killed at any moment",
        [{"after": rng.uniform(0.5, longest)} for _ in range(kills)],
        disturb=kill_later,
    )
    yield make_row(
        "driver killed inside the log",
        make_several(lambda: {"where": "log", "call": rng.randint(2, 9), "share": rng.random()}),
    )
    yield make_row(
        "killed inside a checkpoint, trial", make_several(partial(checkpoint_fault, False))
    )
    yield make_row(
        "killed inside a checkpoint, driver too", make_several(partial(checkpoint_fault, True))
    )
    yield make_row(
        "driver killed inside a view",
        [{"where": "view", "call": call} for call in (1, 2, 3)],
        fresh_cache=True,
    )
    yield make_row(
        "driver killed inside a table",
        [{"where": "table", "call": call} for call in (3, 4, 5, 6, 7, 8, 9, 10)],
    )
    yield "torn tail, log opened", campaign.tear_log_tail
    yield make_row(
        "torn tail",
        make_several(lambda: {"epochs": rng.randint(2, 6), "share": rng.random()}),
        disturb=kill_after_epochs,
        between=tear_log,
    )
    yield make_row(
        "garbage appended",
        make_several(
            lambda: {
                "epochs": rng.randint(2, 6),
                "bytes": [rng.choice([10, *range(256)]) for _ in range(300)],
            }
        ),
        disturb=kill_after_epochs,
        between=append_garbage,
    )
    yield make_row(
        "trial process killed",
        make_several(lambda: {"epochs": rng.randint(1, 5), "part": "ray::ResourceTrainable"}),
        disturb=kill_child,
    )
    yield make_row(
        "raylet killed",
        make_several(lambda: {"epochs": rng.randint(1, 5), "part": "raylet/raylet"}),
        disturb=kill_child,
    )
    yield make_row(
        "nan", trial_fault("nan"), own="diverged: epoch 2: the training loss became nan"
    )
    yield make_row(
        "inf", trial_fault("inf"), own="diverged: epoch 2: the training loss became inf"
    )
    yield make_row("exception", trial_fault("raise"), own="crashed: RuntimeError: injected")
    yield make_row("hang", trial_fault("hang"), more=("--stall-timeout", "5s"))
    yield make_row(
        "hang twice",
        trial_fault("hang", times=2),
        own="crashed: no progress for",
        more=("--stall-timeout", "5s"),
    )
    yield make_row(
        "disk full, log", [{"where": "full driver", "bytes": size} for size in (100, 900, 3000)]
    )
    yield make_row("disk full, checkpoint", [{"where": "full checkpoint", "bytes": 200_000}])
    yield make_row("disk full, view", [{"where": "full view", "bytes": 50_000}], fresh_cache=True)
    yield make_row(
        "disk full, tables",
        [{"where": "full tables", "bytes": size} for size in (100, 5_000, 300_000)],
    )
    yield make_row(
        "two drivers at once", [{"epochs": 2}, {"epochs": 5}], disturb=start_second_driver
    )
    yield make_row(
        "clock set back",
        make_several(lambda: {"where": "clock", "epochs": rng.randint(2, 6)}),
        disturb=kill_after_epochs,
    )


if __name__ == "__main__":
    main()
