"""How far a sweep is, from its log alone."""

import time
from collections.abc import Iterator
from pathlib import Path

from kdtune.config import SweepConfig, duration
from kdtune.reports.leaderboard import sweep_tables
from kdtune.reports.render import render
from kdtune.reports.tables import bad_images_note
from kdtune.results import Event


def status_lines(
    opened: list[Event],
    events: list[Event],
    held: bool | None,
    holder: str,
    folder: Path,
) -> Iterator[str]:
    """Tell a person how far a sweep is.

    Args:
        opened: the events with which drivers opened it.
        events: all events.
        held: whether a driver runs it; None if that is not known.
        holder: which process that is.
        folder: the sweep's, for the command that goes on with it.
    """
    sweep = SweepConfig.check(opened[-1]["config"])
    tables = sweep_tables(events)
    trials = tables.trials
    ended = trials[trials["state"] != "running"]
    ago = duration(max(0.0, time.time() - events[-1]["time"]))
    if held:
        yield f"{folder} is being run by {holder}"
    elif held is None:
        yield f"{folder}: nobody can tell whether a process runs it, since it cannot be locked"
    else:
        yield f"{folder}: no process runs it"
    total = sweep.trials and sweep.trials * len(sweep.cells())
    of = f" of {total}" if total else ""
    times = f", resumed {len(opened) - 1} times" if len(opened) > 1 else ""
    yield (
        f"{len(ended)}{of} trials have ended, {int(trials['epochs'].sum())} epochs are trained; "
        f"last event {ago} ago{times}"
    )
    for trial in trials[trials["state"] == "running"].itertuples():
        again = f", begun again {trial.restarts} times" if trial.restarts else ""
        yield f"under way: {trial.trial_id}, after epoch {trial.epochs} of {sweep.epochs}{again}"
    if events[-1]["event"] == "complete":
        yield "it is complete; more trials, epochs or cells are for 'kdtune resume'"
    elif not held:
        yield f"to go on: kdtune resume {folder}"
    yield ""
    notes = [note] if (note := bad_images_note(events)) else []
    yield render([tables.leaderboard], "table", notes).rstrip()
