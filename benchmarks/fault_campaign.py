"""Sweeps with faults, each compared with an undisturbed one of the same settings, bit for bit."""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any

import pandas as pd
from fault_injection import Fault
from PIL import Image
from sklearn.datasets import load_digits

from kdtune.log.events import (
    CandidateChosen,
    CellModelled,
    EpochFinished,
    Event,
    RunTested,
    SeedsAdded,
    TrialsAdded,
)
from kdtune.log.folder import SweepFolder
from kdtune.log.trial_history import TrialHistory

SWEEP = (
    "sweep --name x --image-size 8 --models MultiBranchNet --no-baselines --epochs 4 "
    "--grace-period 2 --cpus-per-trial 2 --max-concurrent 1 --setting batch_size=64"
)
TEACHER = "teacher --image-size 8 --model MultiBranchNet --epochs 2 --setting lr=0.05"
COLUMNS = ("injected", "survived", "epochs lost", "differences")
DECISIONS = (CandidateChosen, CellModelled, RunTested, SeedsAdded, TrialsAdded)
TIMES = ["search_device_seconds", "confirm_device_seconds", "latency_ms"]
MAX_TRIES = 4  # of a fault that came when the sweep was over
Driver = subprocess.Popen[str]


@dataclass(frozen=True)
class Row:
    """A kind of fault, which is a row of the table.

    Attributes:
        faults: one for each start of a driver.
        disturb: does something to a running driver; returns False if it came too late.
        restore: undoes it in the folder of a driver that was hit and has ended.
        flags: of the sweep, if they are not the campaign's; each set has its undisturbed sweep.
        run_flags: of every start; they change no result.
        fresh_cache: start each sweep with an empty cache.
        last_trial_ends: state and reason of the last trial, which then may differ.
        check: returns False if the sweep is not what it has to be at its end.
        exits: exit code of a driver that was hit, and words that it says.
        resumes_again: resume also after the sweep's end, as when its copy is not complete.
    """

    kind: str
    faults: list[Fault]
    disturb: Callable[[Driver, SweepFolder, Fault], bool] | None = None
    restore: Callable[[SweepFolder, Fault], None] | None = None
    flags: str | None = None
    run_flags: str = ""
    fresh_cache: bool = False
    last_trial_ends: str | None = None
    check: Callable[[SweepFolder], bool] | None = None
    exits: tuple[int, str] | None = None
    resumes_again: bool = False


class Campaign:
    """Runs sweeps in a folder, and keeps count.

    Args:
        work_folder: the folder.
        trials: of each cell, where a row does not say it.
    """

    def __init__(self, work_folder: Path, trials: int):
        self.work_folder, self.flags = work_folder, f"--methods at,fitnets --trials {trials}"
        self.last_trial = f"fitnets-MultiBranchNet-{trials - 1:03d}"
        """The last trial of the sweep: what happens to it changes no other."""
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._references, self._numbers = dict[str, SweepFolder](), count(1)
        self._locks: defaultdict[str, Lock] = defaultdict(Lock)
        self.data, self.teacher = work_folder / "data", work_folder / "teacher.pth"
        write_digits(self.data, 60)
        words = [*TEACHER.split(), "--data", str(self.data), "--out", str(self.teacher)]
        self._complete(words, work_folder / "teacher")

    def place(self, kind: str, number: int) -> Path:
        """Return the folder of one of the sweeps of a row, in which its driver runs.

        Args:
            kind: of the row.
            number: of the sweep, from 1.
        """
        return self.work_folder / f"{kind.replace(' ', '-').replace(',', '')}-{number}"

    def start(
        self, fault: Fault, words: list[str], place: Path, fresh_cache: bool = False
    ) -> Driver:
        """Start `kdtune` with a fault in a folder, as a session of its own.

        Args:
            fault: empty for none.
            words: arguments.
            place: the folder; what it says is appended to the file beside it.
            fresh_cache: use a cache of this folder alone.
        """
        place.mkdir(exist_ok=True)
        cache = (place if fresh_cache else self.work_folder) / "cache"
        program = str(Path(__file__).with_name("fault_injection.py"))
        with open(said_path(place), "a") as said:
            return subprocess.Popen(
                [sys.executable, program, json.dumps(fault), *words],
                cwd=place, env={**os.environ, "KDTUNE_CACHE": str(cache)}, text=True,
                stdout=subprocess.DEVNULL, stderr=said, start_new_session=True,
            )  # fmt: skip

    def _complete(self, words: list[str], place: Path) -> None:
        if self.start({}, words, place).wait() != 0:
            raise RuntimeError(said_path(place).read_text())

    def sweep_words(self, flags: str | None) -> list[str]:
        """Return the arguments that start a sweep, with the campaign's flags if given none."""
        words = f"{SWEEP} {flags or self.flags} --teacher".split() + [str(self.teacher)]
        return words if "--data" in words else [*words, "--data", str(self.data)]

    def reference(self, flags: str | None = None) -> SweepFolder:
        """Return the undisturbed sweep with these flags, which is run once."""
        with self._locks[flags := flags or self.flags]:
            if flags not in self._references:
                place = self.place("reference", next(self._numbers))
                self._complete(self.sweep_words(flags), place)
                self._references[flags] = sweep_of(place)
        return self._references[flags]

    def run(self, row: Row) -> None:
        """Run sweeps until all faults of a row have happened, and then to their end."""
        self.reference(row.flags)
        pending, number = list(row.faults), 0
        while pending:
            self._run_sweep(row, pending, self.place(row.kind, number := number + 1))
        self.print_row(row.kind)

    def _run_sweep(self, row: Row, pending: list[Fault], place: Path) -> None:
        """Run a sweep to its end, with a pending fault at each start of its driver."""
        counts, sweep, epochs = self.counts[row.kind], sweep_of(place), dict[Any, float]()
        injected, failures = 0, 0
        while failures < 3:  # in a row, without a fault
            fault = pending.pop(0) if pending else None
            is_hit, code = self._run_driver(row, fault, place)
            if fault is not None and is_hit:
                injected += 1
                if row.restore is not None:
                    row.restore(sweep, fault)
            elif fault is not None and fault.get("tries", 1) < MAX_TRIES:
                pending.append({**fault, "tries": fault.get("tries", 1) + 1})
            before, epochs = epochs, logged_accuracies(sweep)
            counts["epochs lost"] += len(before.items() - epochs.items())
            failures = failures + 1 if code and fault is None else 0
            if code == 0 and not (is_hit and row.resumes_again):
                counts["survived"] += injected
                counts["differences"] += self._count_differences(row, sweep)
                break
        counts["injected"] += injected

    def _run_driver(self, row: Row, fault: Fault | None, place: Path) -> tuple[bool, int]:
        """Run a driver to its end; return True if the fault happened, and the exit code."""
        sweep, said = sweep_of(place), said_path(place)
        is_new = not sweep.path.exists()
        words = self.sweep_words(row.flags) if is_new else ["resume", str(sweep.path)]
        marks = Path(tempfile.mkdtemp(dir=self.work_folder))
        num_said = said.stat().st_size if said.exists() else 0
        given = {} if fault is None else {**fault, "marks": str(marks)}
        driver = self.start(given, [*words, *row.run_flags.split()], place, row.fresh_cache)
        is_hit = bool(fault and row.disturb and row.disturb(driver, sweep, fault))
        code = driver.wait()
        is_hit = fault is not None and (is_hit or code != 0 or any(marks.iterdir()))
        if is_hit and row.exits is not None:
            exit_code, sentence = row.exits
            says = sentence.encode() in said.read_bytes()[num_said:]
            self.counts[row.kind]["differences"] += not (says and code == exit_code)
        return is_hit, code

    def _count_differences(self, row: Row, sweep: SweepFolder) -> int:
        reference, num_wrong = self.reference(row.flags), 0
        actual, expected = outcomes(sweep), outcomes(reference)
        if row.check is not None:
            num_wrong += not row.check(sweep)
        if row.last_trial_ends is not None:
            state, reason = actual.pop(self.last_trial)[2:]
            num_wrong += not f"{state}: {reason}".startswith(row.last_trial_ends)
            del expected[self.last_trial]
        else:
            num_wrong += not bool(read_leaderboard(sweep).equals(read_leaderboard(reference)))
            num_wrong += decisions(sweep) != decisions(reference)
        keys = actual.keys() | expected.keys()
        return num_wrong + sum(bool(actual.get(key) != expected.get(key)) for key in keys)

    def print_row(self, kind: str) -> None:
        """Print a row of the table."""
        counts = self.counts[kind]
        print(f"| {kind} | {' | '.join(str(counts[c]) for c in COLUMNS)} |", flush=True)


def sweep_of(place: Path) -> SweepFolder:
    """Return the sweep of a driver that runs in a folder."""
    return SweepFolder(place / "results" / "x")


def said_path(place: Path) -> Path:
    """Return the file with all that the drivers in a folder say."""
    return place.with_name(f"{place.name}.txt")


def write_digits(root: Path, per_class: int, first: int = 0) -> None:
    """Write real digits as PNG, as one folder of classes.

    Args:
        root: the folder.
        per_class: images of each digit.
        first: number of the first one of each.
    """
    digits, counts = load_digits(), Counter[int]()
    for image, label in zip(digits.images, digits.target, strict=True):
        if first <= counts[label] < first + per_class:
            path = root / f"digit-{label}" / f"{counts[label]:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 15).astype("uint8")).save(path)
        counts[label] += 1


def load_all_events(sweep: SweepFolder) -> list[Event]:
    """Return the events of a search and its confirmation; none before there is a log."""
    is_there = sweep.log_path.is_file()
    return [*sweep.load_events(), *sweep.load_confirm_events()] if is_there else []


def outcomes(sweep: SweepFolder) -> dict[str, Any]:
    """Return settings, accuracies, state and reason of each trial and run."""
    return {
        trial_id: [
            json.dumps(trial.proposed.config, sort_keys=True),
            [epoch.validation_accuracy for epoch in trial.epochs],
            str(trial.state),
            trial.ended.reason if trial.ended else "",
        ]
        for trial_id, trial in TrialHistory(load_all_events(sweep)).trials.items()
    }


def decisions(sweep: SweepFolder) -> list[dict[str, Any]]:
    """Return what was decided about the whole sweep, without times."""
    chosen = (event for event in load_all_events(sweep) if isinstance(event, DECISIONS))
    return [event.model_dump(exclude={"time", "session_seconds"}) for event in chosen]


def logged_accuracies(sweep: SweepFolder) -> dict[tuple[str, int], float]:
    """Return the accuracies of all finished epochs."""
    logged = [event for event in load_all_events(sweep) if isinstance(event, EpochFinished)]
    return {(e.trial_id, e.epoch): e.validation_accuracy for e in logged}


def read_leaderboard(sweep: SweepFolder) -> pd.DataFrame:
    """Return the leaderboard without times."""
    leaderboard = pd.read_csv(sweep.path / "leaderboard.csv")
    return leaderboard.drop(columns=TIMES, errors="ignore")
