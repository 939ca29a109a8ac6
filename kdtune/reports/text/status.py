"""How far a sweep is, from its logs alone."""

import time
from collections.abc import Iterator
from pathlib import Path

from kdtune.config.sweep import SweepConfig
from kdtune.log.events import Event
from kdtune.reports.tables.log_tables import runs_table, trials_table
from kdtune.units import duration


def status_lines(
    opened: list[Event],
    events: list[Event],
    confirmed: list[Event],
    held: bool | None,
    holder: str,
    folder: Path,
) -> Iterator[str]:
    """Tell a person how far a sweep is.

    Args:
        opened: the events with which drivers opened it.
        events: all events of the search.
        confirmed: all events of the confirmation.
        held: whether a driver runs it; None if that is not known.
        holder: which process that is.
        folder: the sweep's, for the command that goes on with it.
    """
    sweep = SweepConfig.check(opened[-1]["config"])
    trials, runs = trials_table(events), runs_table(confirmed)
    ended = trials[trials["state"] != "running"]
    last = max([events[-1], *confirmed[-1:]], key=lambda event: event["time"])
    ago = duration(max(0.0, time.time() - last["time"]))
    if held:
        yield f"{folder} is being run by {holder}"
    elif held is None:
        yield f"{folder}: nobody can tell whether a process runs it, since it cannot be locked"
    else:
        yield f"{folder}: no process runs it"
    total = sweep.trials and sweep.trials * len(sweep.cells())
    of = f" of {total}" if total else ""
    resumed = len(opened) - 1
    times = f", resumed {resumed} time{'s' * (resumed > 1)}" if resumed else ""
    yield (
        f"{len(ended)}{of} trials have ended, {int(trials['epochs'].sum())} epochs are trained; "
        f"last event {ago} ago{times}"
    )
    under_way = [
        *trials[trials["state"] == "running"][["trial_id", "epochs", "restarts"]].to_numpy(),
        *runs[runs["status"] == "running"][["run_id", "epochs", "restarts"]].to_numpy(),
    ]
    if confirmed:
        yield f"confirmation: {(runs['status'] != 'running').sum()} runs have ended"
    for name, epochs, restarts in under_way:
        again = f", begun again {restarts} times" if restarts else ""
        yield f"under way: {name}, after epoch {epochs} of {sweep.epochs}{again}"
    if events[-1]["event"] != "complete":
        if not held:
            yield f"to go on: kdtune resume {folder}"
    elif confirmed and confirmed[-1]["event"] != "complete":
        if not held:
            yield f"to go on: kdtune confirm {folder}"
    else:
        yield "it is complete; more trials, epochs or cells are for 'kdtune resume'"
