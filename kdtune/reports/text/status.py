"""Status of a sweep, from its logs."""

import time
from collections.abc import Iterator

from kdtune.config.sweep import SweepConfig
from kdtune.log.events import Completed, TrialState
from kdtune.log.folder import SweepSnapshot
from kdtune.log.trial_history import TrialHistory
from kdtune.units import format_duration


def status_lines(sweep: SweepSnapshot) -> Iterator[str]:
    """Yield lines that say how far a sweep is."""
    folder, events, confirm_events = sweep.path, sweep.load_events(), sweep.load_confirm_events()
    opening_events, is_locked = sweep.load_opening_events(), sweep.is_locked()
    config = SweepConfig.parse(opening_events[-1].config)
    trials, runs = (TrialHistory(log).trials for log in (events, confirm_events))
    all_trials = trials | runs
    running = {k: trial for k, trial in all_trials.items() if trial.state == TrialState.RUNNING}
    last_event = max([events[-1], *confirm_events[-1:]], key=lambda event: event.time)
    ago = format_duration(max(0.0, time.time() - last_event.time))
    if is_locked:
        yield f"{folder} is being run by {sweep.lock_holder()}"
    elif is_locked is None:
        yield f"{folder}: it is unknown whether a process runs it, since it cannot be locked"
    else:
        yield f"{folder}: no process runs it"
    total = config.trials and config.trials * len(config.cells())
    goal = f" of {total}" if total else ""
    resume_count = len(opening_events) - 1
    times = f", resumed {resume_count} time{'s' * (resume_count > 1)}" if resume_count else ""
    epochs = sum(trial.epochs[-1].epoch for trial in trials.values() if trial.epochs)
    yield (
        f"{len(trials.keys() - running)}{goal} trials have ended, {epochs} epochs are trained; "
        f"last event {ago} ago{times}"
    )
    if confirm_events:
        yield f"confirmation: {len(runs.keys() - running)} runs have ended"
    for trial in running.values():
        restarts = len(trial.restarts)
        restarted_text = f", restarted {restarts} time{'s' * (restarts > 1)}" if restarts else ""
        epoch = trial.epochs[-1].epoch if trial.epochs else 0
        name = trial.proposed.describe()
        yield f"running: {name}, after epoch {epoch} of {config.epochs}{restarted_text}"
    logs = {"resume": events, "confirm": confirm_events}
    unfinished = [k for k, log in logs.items() if log and not isinstance(log[-1], Completed)]
    if unfinished and not is_locked:
        yield f"to continue: kdtune {unfinished[0]} {folder}"
    elif not unfinished:
        yield "it is complete; 'kdtune resume' adds trials, epochs or cells"
