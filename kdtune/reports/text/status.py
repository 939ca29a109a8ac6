"""How far a sweep is, from its logs alone."""

import time
from collections.abc import Iterator
from pathlib import Path

from kdtune.config.sweep import SweepConfig
from kdtune.log.events import Event
from kdtune.reports.tables.log_tables import runs_table, trials_table
from kdtune.units import format_duration


def status_lines(
    opening_events: list[Event],
    events: list[Event],
    confirm_events: list[Event],
    is_locked: bool | None,
    lock_holder: str,
    folder: Path,
) -> Iterator[str]:
    """Tell a person how far a sweep is.

    Args:
        opening_events: the events with which drivers opened it.
        events: all events of the search.
        confirm_events: all events of the confirmation.
        is_locked: whether a driver runs it; None if that is not known.
        lock_holder: which process that is.
        folder: the sweep's, for the command that goes on with it.
    """
    config = SweepConfig.parse(opening_events[-1]["config"])
    trials, runs = trials_table(events), runs_table(confirm_events)
    ended = trials[trials["state"] != "running"]
    last_event = max([events[-1], *confirm_events[-1:]], key=lambda event: event["time"])
    ago = format_duration(max(0.0, time.time() - last_event["time"]))
    if is_locked:
        yield f"{folder} is being run by {lock_holder}"
    elif is_locked is None:
        yield f"{folder}: nobody can tell whether a process runs it, since it cannot be locked"
    else:
        yield f"{folder}: no process runs it"
    total = config.trials and config.trials * len(config.cells())
    goal = f" of {total}" if total else ""
    resume_count = len(opening_events) - 1
    times = f", resumed {resume_count} time{'s' * (resume_count > 1)}" if resume_count else ""
    yield (
        f"{len(ended)}{goal} trials have ended, {int(trials['epochs'].sum())} epochs are trained; "
        f"last event {ago} ago{times}"
    )
    running = [
        *trials[trials["state"] == "running"][["trial_id", "epochs", "restarts"]].to_numpy(),
        *runs[runs["status"] == "running"][["run_id", "epochs", "restarts"]].to_numpy(),
    ]
    if confirm_events:
        yield f"confirmation: {(runs['status'] != 'running').sum()} runs have ended"
    for name, epochs, restarts in running:
        restarted_text = f", begun again {restarts} times" if restarts else ""
        yield f"under way: {name}, after epoch {epochs} of {config.epochs}{restarted_text}"
    if events[-1]["event"] != "complete":
        if not is_locked:
            yield f"to go on: kdtune resume {folder}"
    elif confirm_events and confirm_events[-1]["event"] != "complete":
        if not is_locked:
            yield f"to go on: kdtune confirm {folder}"
    else:
        yield "it is complete; more trials, epochs or cells are for 'kdtune resume'"
