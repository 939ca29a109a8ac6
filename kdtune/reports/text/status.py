"""How far a sweep is, from its logs alone."""

import time
from collections.abc import Iterator

from kdtune.config.sweep import SweepConfig
from kdtune.log.events import Completed
from kdtune.log.folder import SweepSnapshot
from kdtune.reports.tables.log_tables import runs_table, trials_table
from kdtune.units import format_duration


def status_lines(sweep: SweepSnapshot) -> Iterator[str]:
    """Yield lines that say how far a sweep is."""
    folder, events, confirm_events = sweep.path, sweep.load_events(), sweep.load_confirm_events()
    opening_events, is_locked = sweep.load_opening_events(), sweep.is_locked()
    config = SweepConfig.parse(opening_events[-1].config)
    trials, runs = trials_table(events), runs_table(confirm_events)
    ended = trials[trials["state"] != "running"]
    last_event = max([events[-1], *confirm_events[-1:]], key=lambda event: event.time)
    ago = format_duration(max(0.0, time.time() - last_event.time))
    if is_locked:
        yield f"{folder} is being run by {sweep.lock_holder()}"
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
    if not isinstance(events[-1], Completed):
        if not is_locked:
            yield f"to go on: kdtune resume {folder}"
    elif confirm_events and not isinstance(confirm_events[-1], Completed):
        if not is_locked:
            yield f"to go on: kdtune confirm {folder}"
    else:
        yield "it is complete; more trials, epochs or cells are for 'kdtune resume'"
