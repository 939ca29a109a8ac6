"""What a sweep survives: a campaign of faults, injected into real processes.

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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from PIL import Image
from sklearn.datasets import load_digits

import kdtune.log.events
import kdtune.models.checkpoints
import kdtune.storage.array_cache
import kdtune.training.loop
import kdtune.tuning.driver.driver
import kdtune.tuning.sweep
from kdtune.cli.commands import main as kdtune_main
from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.log.events import Event, Log
from kdtune.log.folder import SweepFolder
from kdtune.tuning.scheduling.search_policy import Search
from kdtune.tuning.search.space import load_spaces
from kdtune.tuning.trials.trainable import TrialProcess

SWEEP = (
    "sweep --data data --image-size 8 --methods at,fitnets --models MultiBranchNet "
    "--no-baselines --epochs 4 --grace-period 2 --cpus-per-trial 2 "
    "--setting batch_size=64"
)
TEACHER = "teacher --data data --image-size 8 --model MultiBranchNet --epochs 2 --setting lr=0.05"
COLUMNS = ("injected", "survived", "epochs lost", "differences")
Fault = dict[str, Any]


# What happens in the process that is hit


class Faulty(TrialProcess):
    """A trial process in which a fault waits."""

    def results(self, trial_id: str, config: dict[str, Any]) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """As ever, up to the fault."""
        fault = json.loads(os.environ["KDTUNE_FAULT"])
        with contextlib.ExitStack() as stack:
            one_pass = kdtune.training.loop.one_pass  # the next trial shall have it as it was
            stack.callback(setattr, kdtune.training.loop, "one_pass", one_pass)
            if fault.get("where") == "checkpoint":
                _break_checkpoints(fault, stack)
            if fault.get("where") == "full checkpoint":
                _limit(fault["bytes"])
                stack.callback(_limit, None)
            for result in super().results(trial_id, config):
                yield result
                epoch = result.get("epoch", 0)
                if fault.get("trial") in (trial_id, "any") and epoch == fault["epoch"]:
                    if _first(fault):
                        _happen(fault["do"])


def _first(fault: Fault) -> bool:
    """Whether the fault may still happen; it happens as often as it says."""
    marks = Path(fault["marks"])
    count = len(list(marks.iterdir()))
    if count >= fault.get("times", 1):
        return False
    (marks / str(count)).touch()
    return True


def _happen(what: str) -> None:
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "hang":
        time.sleep(1e6)
    else:
        kdtune.training.loop.one_pass = partial(_spoiled, what)


def _spoiled(what: str, *arguments: Any, **named: Any) -> dict[str, float]:
    if what == "raise":
        raise RuntimeError("injected")
    return {"loss": float(what), "accuracy": 0.0}


def _limit(size: int | None) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def _break_checkpoints(fault: Fault, stack: contextlib.ExitStack) -> None:
    save, calls = torch.save, [0]

    def broken(content: Any, file: Any) -> None:
        calls[0] += 1
        save(content, file)
        if calls[0] == fault["call"] and _first(fault):
            file.flush()
            file.truncate(file.tell() // 2)
            if fault["driver too"]:
                os.kill(int(os.environ["KDTUNE_DRIVER"]), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

    kdtune.models.checkpoints.torch.save = broken  # type: ignore[assignment]
    stack.callback(setattr, kdtune.models.checkpoints.torch, "save", save)


def _die_at(call: int, function: Callable[..., Any], before: Callable[..., Any]) -> Any:
    """The function, but at its so-manieth call the process does `before`, and dies."""
    calls = [0]

    def wrapped(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            before(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    return wrapped


def _install(fault: Fault) -> None:
    """Lay a fault into this process, which is going to be a driver."""
    where, call = fault.get("where"), fault.get("call", 0)
    if where == "log":

        def part(log: Log, line: bytes) -> None:
            os.write(log._file.fileno(), line[: int(fault["share"] * len(line))])

        Log._write = _die_at(call, Log._write, part)  # type: ignore[method-assign]
    elif where == "view":
        kdtune.storage.array_cache._finish = _die_at(
            call, kdtune.storage.array_cache._finish, lambda *_: None
        )
    elif where == "table":
        Path.replace = _die_at(call, Path.replace, lambda *_: None)  # type: ignore[method-assign]
    elif where == "full view":
        build = kdtune.storage.array_cache.Cache._build

        def without_room_for_views(*arguments: Any) -> None:
            _limit(fault["bytes"])
            build(*arguments)

        kdtune.storage.array_cache.Cache._build = without_room_for_views  # type: ignore[assignment,method-assign]
    elif where == "full driver":
        opened = Log.__init__

        def limited(log: Log, *arguments: Any) -> None:
            opened(log, *arguments)
            if log.path.parent.name[:1] != ".":  # the folder has its name
                _limit(max(fault["bytes"], log._size + fault["bytes"]))

        Log.__init__ = limited  # type: ignore[assignment,method-assign]
    elif where == "full tables":
        tables = kdtune.tuning.sweep.write_outputs

        def without_room(*arguments: Any) -> None:
            _limit(fault["bytes"])
            tables(*arguments)

        kdtune.tuning.sweep.write_outputs = without_room  # type: ignore[assignment]
    elif where == "clock":
        clock = time.time
        shift = [0.0]

        def stepped() -> float:
            shift[0] -= random.choice((0, 3600))
            return clock() + shift[0]

        kdtune.log.events.time.time = stepped


def child(fault: Fault, words: list[str]) -> None:
    """Be `kdtune` with a fault in it."""
    os.environ["KDTUNE_FAULT"], os.environ["KDTUNE_DRIVER"] = json.dumps(fault), str(os.getpid())
    _install(fault)
    kdtune.tuning.driver.driver.TrialProcess = Faulty  # type: ignore[misc]
    sys.argv = ["kdtune", *words]
    kdtune_main()


# The campaign


class Campaign:
    """Runs sweeps in a folder, and keeps count.

    Args:
        place: the folder.
        trials: of each cell.
    """

    def __init__(self, place: Path, trials: int):
        self.place, self.trials = place, trials
        self.last = f"at-MultiBranchNet-{trials - 1:03d}"
        """The last trial of a cell: what happens to it changes no other."""
        self.table: dict[str, Counter[str]] = {}
        write_digits(place / "data", 60)
        self.teacher = place / "teacher.pth"
        self._run(None, *TEACHER.split(), "--out", str(self.teacher))
        self.reference = self._sweep("reference")
        assert self._run(None, *self._words("reference")).wait() == 0
        self.expected = outcomes(self.reference)
        self.seconds = self._length(self.reference)

    def _words(self, name: str) -> list[str]:
        own = ("--trials", str(self.trials), "--teacher", str(self.teacher), "--name", name)
        return [*SWEEP.split(), *own]

    def _sweep(self, name: str) -> SweepFolder:
        return SweepFolder(self.place / "results" / name)

    @staticmethod
    def _length(sweep: SweepFolder) -> float:
        return max(event["session_seconds"] for event in sweep.events())

    def _run(
        self, fault: Fault | None, *words: str, cache: str = "cache"
    ) -> "subprocess.Popen[str]":
        command = [sys.executable, __file__, "--child", json.dumps(fault or {}), *words]
        errors = open(self.place / "errors.txt", "a")
        environment = {**os.environ, "KDTUNE_CACHE": str(self.place / cache)}
        process = subprocess.Popen(
            command, cwd=self.place, env=environment, text=True,
            stdout=subprocess.DEVNULL, stderr=errors,
        )  # fmt: skip
        if words[0] == "teacher":
            process.wait()
        return process

    def marks(self) -> str:
        """A fresh folder in which a fault counts how often it happened."""
        return tempfile.mkdtemp(dir=self.place)

    def go_on(
        self,
        kind: str,
        faults: list[Fault],
        disturb: Callable[["subprocess.Popen[str]", SweepFolder, Fault], bool] | None = None,
        between: Callable[[SweepFolder, Fault], None] | None = None,
        own: str | None = None,
        fresh_cache: bool = False,
        more: tuple[str, ...] = (),
    ) -> None:
        """Run sweeps until all faults have happened, and then to their end.

        Args:
            kind: the row of the table.
            faults: one for each start of a driver.
            disturb: done to a driver while it runs; says whether it could be done.
            between: done to the folder when a driver has ended.
            own: how the trial `last` must end, if its end is to be another.
            fresh_cache: nothing is found in the cache.
            more: flags of the sweep.
        """
        count = self.table.setdefault(kind, Counter())
        waiting, number = list(faults), 0
        while waiting:
            number += 1
            name = f"{kind.replace(' ', '-').replace(',', '')}-{number}"
            sweep, before = self._sweep(name), dict[tuple[str, int], float]()
            injected, stuck = 0, 0
            cache = name if fresh_cache else "cache"
            while True:
                fault = waiting.pop(0) if waiting else None
                there = sweep.path.exists()
                words = ("resume", str(sweep.path)) if there else (*self._words(name), *more)
                driver = self._run(fault, *words, cache=cache)
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
                        waiting.append(fault)  # the sweep was over before
                count["epochs lost"] += len(before.items() - epochs(sweep).items())
                before = epochs(sweep)
                if code == 0:
                    break
                stuck = 0 if fault is not None else stuck + 1
                if stuck == 3:  # it should have come to its end
                    break
            count["injected"] += injected
            if stuck < 3:
                count["survived"] += injected
                count["differences"] += self._differences(sweep, own)
        self._say(kind)

    def _differences(self, sweep: SweepFolder, own: str | None) -> int:
        found, expected = outcomes(sweep), dict(self.expected)
        wrong = 0
        if own is not None:
            state, reason = found.pop(self.last)[2:]
            wrong += not f"{state}: {reason}".startswith(own)
            del expected[self.last]
        keys = found.keys() | expected.keys()
        wrong += sum(found.get(key) != expected.get(key) for key in keys)
        if own is None:
            wrong += not board(sweep).equals(board(self.reference))
        return wrong

    def _say(self, kind: str) -> None:
        count = self.table[kind]
        print(f"| {kind} | {' | '.join(str(count[c]) for c in COLUMNS)} |", flush=True)

    def torn(self) -> None:
        """Tear the last end of a trial in the undisturbed log at every length, and open it."""
        kind, log = "torn tail, log opened", self.place / "torn.jsonl"
        count = self.table.setdefault(kind, Counter())
        *lines, _ = self.reference.log.read_bytes().splitlines(keepends=True)  # it was complete
        whole, events = b"".join(lines), self.reference.events()[:-1]
        start = whole.rstrip(b"\n").rfind(b"\n") + 1
        sweep = SweepConfig.check(events[0]["config"])
        for length in range(len(whole) - start):
            log.write_bytes(whole[: start + length])
            seen: list[Event] = []
            decisions = Search(sweep, load_spaces(), lambda *_: TrainConfig.check({}))
            with Log(log, [*decisions.folds, seen.append]):
                count["injected"] += 1
            count["survived"] += seen == events[:-1]
            count["differences"] += list(decisions.under_way.trials) != [events[-1]["trial_id"]]
        self._say(kind)


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
    """Of every trial: settings, accuracies, state and reason."""
    found: dict[str, Any] = {}
    for event in sweep.events():
        if event["event"] == "asked":
            settings = json.dumps(event["config"], sort_keys=True)
            found[event["trial_id"]] = [settings, [], "", ""]
        elif event["event"] == "epoch":
            found[event["trial_id"]][1].append(event["validation_accuracy"])
        elif event["event"] == "ended":
            found[event["trial_id"]][2:] = event["state"], event["reason"]
    return found


def epochs(sweep: SweepFolder) -> dict[tuple[str, int], float]:
    """Accuracies of all finished epochs."""
    if not sweep.log.is_file():
        return {}
    logged = [event for event in sweep.events() if event["event"] == "epoch"]
    return {(e["trial_id"], e["epoch"]): e["validation_accuracy"] for e in logged}


def board(sweep: SweepFolder) -> pd.DataFrame:
    """The leaderboard without times."""
    return pd.read_csv(sweep.table("leaderboard", ".csv")).drop(columns="search_device_seconds")


def kill_later(driver: "subprocess.Popen[str]", sweep: SweepFolder, fault: Fault) -> bool:
    """Kill a driver after some seconds."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        driver.wait(fault["after"])
        return False
    driver.kill()
    return True


def wait_for_epochs(driver: "subprocess.Popen[str]", sweep: SweepFolder, fault: Fault) -> bool:
    """Wait until this driver has logged so many epochs; false if it ended before."""
    there = len(epochs(sweep))
    while driver.poll() is None:
        if len(epochs(sweep)) >= there + fault["epochs"]:
            return True
        time.sleep(0.02)
    return False


def below(pid: int, word: str) -> list[psutil.Process]:
    """Processes below one, whose command has a word in it."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if word in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill_part(driver: "subprocess.Popen[str]", sweep: SweepFolder, fault: Fault) -> bool:
    """Kill a process below the driver, once it has logged some epochs."""
    if wait_for_epochs(driver, sweep, fault):
        for process in below(driver.pid, fault["part"])[:1]:
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
        child(json.loads(arguments.child[0]), arguments.child[1:])
        return
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as place:
        campaign = Campaign(Path(place), arguments.trials)
        print(f"| fault | {' | '.join(COLUMNS)} |\n" + "|---" * 5 + "|", flush=True)
        rows = list(kinds(campaign, arguments.kills, arguments.each, arguments.seed))
        with ThreadPoolExecutor(arguments.jobs) as pool:
            work = [pool.submit(go) for name, go in rows if name.startswith(arguments.only or "")]
            for future in work:
                future.result()
        total = sum(campaign.table.values(), Counter[str]())
        print(json.dumps({name.replace(" ", "_"): total[name] for name in COLUMNS}))


def kinds(
    campaign: Campaign, kills: int, each: int, seed: int
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every kind of fault, with what injects it."""
    draw = random.Random(seed)

    def go(kind: str, faults: list[Fault], **how: Any) -> tuple[str, Callable[[], None]]:
        return kind, partial(campaign.go_on, kind, faults, **how)

    def several(make: Callable[[], Fault]) -> list[Fault]:
        return [make() for _ in range(each)]

    def trial_fault(do: str, **more: Any) -> list[Fault]:
        return [{"trial": campaign.last, "epoch": 1, "do": do, "marks": campaign.marks(), **more}]

    def checkpoint(driver_too: bool) -> Fault:
        call, marks = draw.randint(1, 4), campaign.marks()
        return {"where": "checkpoint", "call": call, "driver too": driver_too, "marks": marks}

    def garbage(sweep: SweepFolder, fault: Fault) -> None:
        with open(sweep.log, "ab") as log:
            log.write(bytes(fault["bytes"]))

    def tear(sweep: SweepFolder, fault: Fault) -> None:
        content = sweep.log.read_bytes()
        last = len(content) - (content.rstrip(b"\n").rfind(b"\n") + 1)
        os.truncate(sweep.log, len(content) - 1 - int(fault["share"] * (last - 1)))

    def second(driver: "subprocess.Popen[str]", sweep: SweepFolder, fault: Fault) -> bool:
        if not wait_for_epochs(driver, sweep, fault):
            return False
        other = campaign._run(None, "resume", str(sweep.path))
        assert other.wait() == 2
        return True

    longest = 12 + campaign.seconds / 2
    yield go(
        "driver killed at any moment",
        [{"after": draw.uniform(0.5, longest)} for _ in range(kills)],
        disturb=kill_later,
    )
    yield go(
        "driver killed inside the log",
        several(lambda: {"where": "log", "call": draw.randint(2, 9), "share": draw.random()}),
    )
    yield go("killed inside a checkpoint, trial", several(partial(checkpoint, False)))
    yield go("killed inside a checkpoint, driver too", several(partial(checkpoint, True)))
    yield go(
        "driver killed inside a view",
        [{"where": "view", "call": call} for call in (1, 2, 3)],
        fresh_cache=True,
    )
    yield go(
        "driver killed inside a table",
        [{"where": "table", "call": call} for call in (3, 4, 5, 6, 7, 8, 9, 10)],
    )
    yield "torn tail, log opened", campaign.torn
    yield go(
        "torn tail",
        several(lambda: {"epochs": draw.randint(2, 6), "share": draw.random()}),
        disturb=kill_after_epochs,
        between=tear,
    )
    yield go(
        "garbage appended",
        several(
            lambda: {
                "epochs": draw.randint(2, 6),
                "bytes": [draw.choice([10, *range(256)]) for _ in range(300)],
            }
        ),
        disturb=kill_after_epochs,
        between=garbage,
    )
    yield go(
        "trial process killed",
        several(lambda: {"epochs": draw.randint(1, 5), "part": "ray::ResourceTrainable"}),
        disturb=kill_part,
    )
    yield go(
        "raylet killed",
        several(lambda: {"epochs": draw.randint(1, 5), "part": "raylet/raylet"}),
        disturb=kill_part,
    )
    yield go("nan", trial_fault("nan"), own="diverged: epoch 2: the training loss became nan")
    yield go("inf", trial_fault("inf"), own="diverged: epoch 2: the training loss became inf")
    yield go("exception", trial_fault("raise"), own="crashed: RuntimeError: injected")
    yield go("hang", trial_fault("hang"), more=("--stall-time", "5s"))
    yield go(
        "hang twice",
        trial_fault("hang", times=2),
        own="crashed: no progress for",
        more=("--stall-time", "5s"),
    )
    yield go(
        "disk full, log",
        [{"where": "full driver", "bytes": size} for size in (100, 900, 3000)],
    )
    yield go("disk full, checkpoint", [{"where": "full checkpoint", "bytes": 200_000}])
    yield go("disk full, view", [{"where": "full view", "bytes": 50_000}], fresh_cache=True)
    yield go(
        "disk full, tables",
        [{"where": "full tables", "bytes": size} for size in (100, 5_000, 300_000)],
    )
    yield go("two drivers at once", [{"epochs": 2}, {"epochs": 5}], disturb=second)
    yield go(
        "clock set back",
        several(lambda: {"where": "clock", "epochs": draw.randint(2, 6)}),
        disturb=kill_after_epochs,
    )


if __name__ == "__main__":
    main()
