"""Faults that a sweep survives, injected into real processes.

    make bench-faults

A small real sweep (at and fitnets on MultiBranchNet, 600 digits as PNG files; 6 trials a cell of
at most 4 epochs, ASHA after 2) runs with one trial at a time, so that the order of results is
fixed, once undisturbed and then once or several times for each kind of fault. A kind that needs
other settings, such as repeats, `--until-decided` or augmented views, has an undisturbed sweep
with these. Whenever a driver dies, or stops because it must, `kdtune resume` goes on. At the end
every trial's settings, accuracies and end, all decisions and the leaderboard are compared with
those of the undisturbed sweep, to the last bit. Where the fault is the trial's own (NaN, inf, an
exception) it hits the last trial, which must end with that reason, and nothing else may differ.

* injected: faults that happened;
* survived: after which the sweep came to its end;
* epochs lost: finished epochs of the log that are not in the final log, or are others there;
* differences: trials and leaderboards that are not as in the undisturbed sweep, and drivers or
  trials that ended otherwise than the documentation says.

A writer is killed inside: after a random part of a line of the log; after a half of a checkpoint's
bytes; before an array of the cache has its name; before a table has its name. A disk is full by a
limit of the size of files, of the driver, of trials, or of both; or it is a small tmpfs, which
only root can mount. A torn tail is tried at every length of the last line by opening the log, and
the rest of the sweep is run for some of them. The undisturbed log is cut after each of its events,
and continued with the recorded results in place of training (`log_prefixes.py`).

`fault_injection.py` has what happens inside a process, `fault_disturbances.py` what is done to it
from outside.
"""

import argparse
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from fault_campaign import COLUMNS, Campaign, Driver, Row, write_digits
from fault_disturbances import (
    Nodes,
    append_garbage,
    break_storage,
    enlarge_tmpfs,
    fill_tmpfs,
    is_copied,
    kill_after_epochs,
    kill_child,
    kill_later,
    kill_while_view_is_built,
    restarted,
    restore_storage,
    tear_log,
    terminate_group,
    tmpfs,
    wait_for_epochs,
)
from fault_injection import Fault
from log_prefixes import find_wrong_prefixes

from kdtune.config.sweep import SweepConfig
from kdtune.config.train import TrainConfig
from kdtune.log.event_log import EventLog
from kdtune.log.events import Event, TrialEnded
from kdtune.log.folder import SweepFolder
from kdtune.tuning.driver.preflight import prepare_sweep
from kdtune.tuning.driver.resume_rules import build_resume_config
from kdtune.tuning.scheduling.search_policy import SearchPolicy
from kdtune.tuning.search.space import load_spaces

STALLS = "--stall-timeout 5s"
SHORT = "--epochs 2 --grace-period 1"
VIEWS = "--methods at --trials 2 --setting augment=standard"
REPEATS = f"--methods at --trials 12 {SHORT} --repeat-share 0.5"
DECIDED = f"--methods at,fitnets --trials 3 {SHORT} --until-decided --top 1 --seeds 3 --budget 10h"
NO_ROOM = (1, "make room")
RunRow = Callable[[], None]


def main() -> None:
    """Run the campaign, or a part of it, and print the table."""
    parser = argparse.ArgumentParser(description="See the top of this file.")
    parser.add_argument("--kills", type=int, default=20, help="of the driver, at any moment")
    parser.add_argument("--each", type=int, default=3, help="faults of most other kinds")
    parser.add_argument("--trials", type=int, default=6, help="of each cell")
    parser.add_argument("--jobs", type=int, default=2, help="sweeps at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[""], help="kinds that begin so")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as work_folder:
        campaign = Campaign(Path(work_folder), arguments.trials)
        print(f"| fault | {' | '.join(COLUMNS)} |\n" + "|---" * 5 + "|", flush=True)
        rows = build_rows(campaign, arguments.kills, arguments.each, random.Random(arguments.seed))
        with ThreadPoolExecutor(arguments.jobs) as pool:
            begins = tuple(arguments.only)
            chosen = [run_row for kind, run_row in rows if kind.startswith(begins)]
            for future in [pool.submit(run_row) for run_row in chosen]:
                future.result()
        total = sum(campaign.counts.values(), Counter[str]())
        figures = {name.replace(" ", "_"): total[name] for name in COLUMNS}
        print(json.dumps({"rows": len(campaign.counts), **figures}))


def build_rows(
    campaign: Campaign, kills: int, each: int, rng: random.Random
) -> Iterator[tuple[str, RunRow]]:
    """Yield every kind of fault, with the function that runs it.

    Args:
        campaign: runs the rows.
        kills: of the driver, at any moment.
        each: faults of most other kinds.
        rng: draws where faults happen.
    """
    rows = [
        *rows_of_killed_drivers(kills, each, rng),
        *rows_of_logs(each, rng),
        *rows_of_trials(campaign.last_trial, each, rng),
        *rows_of_disks(),
        *rows_of_longer_sweeps(campaign, rng),
        Row(
            "two drivers at once",
            [{"epochs": 2}, {"epochs": 5}],
            partial(start_second_driver, campaign),
        ),
    ]
    # The longest rows are the first, so that no job waits for the other at the end.
    yield "node killed in the teacher's pass", partial(kill_nodes, campaign)
    for row in rows:
        yield row.kind, partial(campaign.run, row)
    yield "disk full, tmpfs of results", partial(fill_results, campaign)
    yield "disk full, tmpfs of the cache", partial(fill_cache, campaign)
    yield "torn tail, log opened", partial(tear_log_tail, campaign)
    yield "log cut after every event", partial(cut_log, campaign)


def rows_of_killed_drivers(kills: int, each: int, rng: random.Random) -> Iterator[Row]:
    """Yield the rows whose drivers are killed, or told to end.

    Args:
        kills: at any moment.
        each: faults of other kinds.
        rng: draws the moments.
    """
    moments = [{"seconds": rng.uniform(0.5, 25)} for _ in range(kills)]
    yield Row("driver killed at any moment", moments, kill_later)
    inside = [
        {"where": "log", "call": rng.randint(2, 9), "share": rng.random()} for _ in range(each)
    ]
    yield Row("driver killed inside the log", inside)
    views = [{"where": "view", "call": call} for call in (1, 2, 3)]
    yield Row("driver killed inside a view", views, fresh_cache=True)
    tables = [{"where": "table", "call": call} for call in range(3, 11)]
    yield Row("driver killed inside a table", tables)
    epochs = [{"epochs": rng.randint(1, 6)} for _ in range(each)]
    exits = 143, "to continue: kdtune resume"
    yield Row("SIGTERM to the driver's group", epochs, terminate_group, exits=exits)
    clock = [{"where": "clock", "epochs": rng.randint(2, 6)} for _ in range(each)]
    yield Row("clock set back", clock, kill_after_epochs)


def rows_of_logs(each: int, rng: random.Random) -> Iterator[Row]:
    """Yield the rows whose logs are damaged after a kill.

    Args:
        each: faults of a kind.
        rng: draws the damage.
    """
    torn = [{"epochs": rng.randint(2, 6), "share": rng.random()} for _ in range(each)]
    yield Row("torn tail", torn, kill_after_epochs, tear_log)
    garbage = [
        {"epochs": rng.randint(2, 6), "bytes": [rng.choice([10, *range(256)]) for _ in range(300)]}
        for _ in range(each)
    ]
    yield Row("garbage appended", garbage, kill_after_epochs, append_garbage)


def rows_of_trials(last_trial: str, each: int, rng: random.Random) -> Iterator[Row]:
    """Yield the rows whose faults are in the process of a trial, or kill it.

    Args:
        last_trial: of the sweep, which may end otherwise.
        each: faults of a kind.
        rng: draws the moments.
    """

    def in_last_trial(do: str, **more: Any) -> list[Fault]:
        return [{"trial": last_trial, "epoch": 1, "do": do, **more}]

    for who, driver_too in (("trial", False), ("driver too", True)):
        faults = [
            {"where": "checkpoint", "call": rng.randint(1, 4), "driver too": driver_too}
            for _ in range(each)
        ]
        yield Row(f"killed inside a checkpoint, {who}", faults)
    for kind, part in (("trial process", "ray::ResourceTrainable"), ("raylet", "raylet/raylet")):
        faults = [{"epochs": rng.randint(1, 5), "part": part} for _ in range(each)]
        yield Row(f"{kind} killed", faults, kill_child)
    for loss in ("nan", "inf"):
        ends = f"diverged: epoch 2: the training loss became {loss}"
        yield Row(loss, in_last_trial(loss), last_trial_ends=ends)
    ends = "crashed: RuntimeError: injected"
    yield Row("exception", in_last_trial("raise"), last_trial_ends=ends)
    stalled = restarted("no progress for")
    yield Row("hang", in_last_trial("hang"), run_flags=STALLS, check=stalled)
    ends = "crashed: no progress for"
    hangs = in_last_trial("hang", times=2)
    yield Row("hang twice", hangs, run_flags=STALLS, last_trial_ends=ends)
    live = "--methods at --trials 3 --no-cache"
    hangs = [{"where": "decoding", "image": image} for image in (10, 400)]
    hangs += [{"trial": "at-MultiBranchNet-001", "epoch": 1, "do": "hang in a batch"}]
    yield Row("hang in a data loader", hangs, flags=live, run_flags=STALLS, check=stalled)
    lost = [{"trial": "at-MultiBranchNet-001", "epoch": 1, "do": "lose the GPU"}]
    yield Row("device context lost", lost, check=restarted("lost the GPU injected: Accelerator"))


def rows_of_disks() -> Iterator[Row]:
    """Yield the rows whose disks are full, or whose storage fails."""
    log = [{"where": "full driver", "bytes": size} for size in (100, 900, 3000)]
    yield Row("disk full, log", log, exits=NO_ROOM)
    checkpoint = [{"where": "full checkpoint", "bytes": 200_000}]
    yield Row("disk full, checkpoint", checkpoint, exits=NO_ROOM)
    view = [{"where": "full view", "bytes": 50_000}]
    yield Row("disk full, view", view, fresh_cache=True, exits=NO_ROOM)
    # More than the driver says, since its stderr is a file here, and limited as well.
    tables = [{"where": "full tables", "bytes": size} for size in (6_000, 8_000, 300_000)]
    yield Row("disk full, tables", tables, exits=NO_ROOM)
    storage = [{"epochs": 2, "later": 5}, {"epochs": 4, "later": 3}, {"epochs": 2, "later": 999}]
    yield Row(
        "storage fails", storage, break_storage, restore_storage,
        run_flags="--storage storage", resumes_again=True, check=is_copied,
    )  # fmt: skip


def rows_of_longer_sweeps(campaign: Campaign, rng: random.Random) -> Iterator[Row]:
    """Yield the rows with repeats, `--until-decided` and augmented views.

    Args:
        campaign: has the folder for data with more test images.
        rng: draws the moments.
    """
    repeats = [{"after": "repeat", "epochs": epochs} for epochs in (1, 1, 2)]
    yield Row("driver killed in a repeat", repeats, kill_after_epochs, flags=REPEATS)
    tested = campaign.work_folder / "tested"
    for folder, per_class, first in (("train", 30, 0), ("val", 20, 30), ("test", 120, 50)):
        write_digits(tested / folder, per_class, first)
    flags = f"{DECIDED} --data {tested}"
    for what in ("trials", "seeds"):
        kills = [{"after": f"{what}_added", "epochs": epochs} for epochs in (1, 3)]
        kind = f"driver killed in added {what}"
        yield Row(kind, kills, kill_after_epochs, flags=flags)
    ahead = [
        {"where": "view ahead", "part": part, "seconds": rng.uniform(0, 3)}
        for part in ("builder", "trial", "driver")
    ]
    yield Row(
        "killed while a view is built ahead", ahead, kill_while_view_is_built,
        flags=VIEWS, fresh_cache=True,
    )  # fmt: skip


def start_second_driver(
    campaign: Campaign, driver: Driver, sweep: SweepFolder, fault: Fault
) -> bool:
    """Start a second driver, which must refuse."""
    is_there = wait_for_epochs(driver, sweep, fault)
    if is_there:
        place = sweep.path.parents[1]
        assert campaign.start({}, ["resume", str(sweep.path)], place).wait() == 2
    return is_there


def tear_log_tail(campaign: Campaign) -> None:
    """Tear the last end of a trial in the undisturbed log at every length, and open it."""
    kind, log = "torn tail, log opened", campaign.work_folder / "torn.jsonl"
    count, reference = campaign.counts[kind], campaign.reference()
    events, lines = reference.load_events(), reference.log_path.read_bytes().splitlines(True)
    number = max(i for i, event in enumerate(events) if isinstance(event, TrialEnded))
    torn, before = events[number], b"".join(lines[:number])
    assert isinstance(torn, TrialEnded)
    sweep = SweepConfig.parse(reference.load_opening_events()[0].config)
    for length in range(len(lines[number])):
        log.write_bytes(before + lines[number][:length])
        events_read: list[Event] = []
        policy = SearchPolicy(sweep, load_spaces(), lambda *_: TrainConfig.parse({}))
        with EventLog(log, [*policy.folds, events_read.append]):
            count["injected"] += 1
        count["survived"] += events_read == events[:number]
        count["differences"] += list(policy.active_trials.by_id) != [torn.trial_id]
    campaign.print_row(kind)


def cut_log(campaign: Campaign) -> None:
    """Cut the undisturbed log after every event, and let the policy decide the rest again."""
    kind, reference = "log cut after every event", campaign.reference()
    opening = reference.load_opening_events()[0]
    prepared = prepare_sweep(build_resume_config(opening, {}), (), opening)

    def make_policy() -> SearchPolicy:
        inputs = prepared.sweep, prepared.spaces, prepared.configure_trial
        return SearchPolicy(*inputs, measure_scales=prepared.measure_scales)

    wrong = find_wrong_prefixes(reference.log_path, make_policy)
    number = len(reference.load_events())
    campaign.counts[kind].update(
        injected=number, survived=number - len(wrong), differences=len(wrong)
    )
    campaign.print_row(kind)


def fill_results(campaign: Campaign) -> None:
    """Run a sweep whose results are on a file system that is too small, three times."""
    faults = [{"later": size} for size in ("2m", "4m", "64m")]
    _run_on_tmpfs(campaign, "disk full, tmpfs of results", "results", "300k", faults=faults)


def fill_cache(campaign: Campaign) -> None:
    """Run a sweep whose cache is on a file system that is too small, or full by another."""
    kind = "disk full, tmpfs of the cache"
    disturb = partial(fill_tmpfs, campaign.place(kind, 1) / "cache")
    faults = [{"later": "64m", "shrinks": shrinks} for shrinks in (False, True, True)]
    how = {"faults": faults, "disturb": disturb, "flags": VIEWS, "fresh_cache": True}
    _run_on_tmpfs(campaign, kind, "cache", "60k", **how)


def _run_on_tmpfs(campaign: Campaign, kind: str, name: str, size: str, **how: Any) -> None:
    folder = campaign.place(kind, 1) / name
    with tmpfs(folder, size) as is_mounted:
        if is_mounted:
            restore = partial(enlarge_tmpfs, folder)
            campaign.run(Row(kind, restore=restore, exits=NO_ROOM, **how))
        else:
            print(f"{kind}: left out, since no tmpfs can be mounted here")


def kill_nodes(campaign: Campaign) -> None:
    """Run a sweep on a cluster, and kill nodes while the teacher computes its targets."""
    nodes = Nodes(campaign.work_folder)
    try:
        flags = f"--address {nodes.address} --storage storage"
        faults = [{"epochs": 0}, {"epochs": 1}]
        kind = "node killed in the teacher's pass"
        campaign.run(Row(kind, faults, nodes.kill_during_pass, run_flags=flags))
    finally:
        nodes.shutdown()


if __name__ == "__main__":
    main()
