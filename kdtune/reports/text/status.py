"""Status of a sweep, from its logs."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from kdtune.config.sweep import SweepConfig
from kdtune.errors import UserError
from kdtune.log.events import Completed, TrialState
from kdtune.log.folder import SweepFolder, SweepSnapshot
from kdtune.log.trial_history import TrialHistory
from kdtune.reports.text.render import render_table
from kdtune.units import format_duration


def sweep_status(sweep: SweepSnapshot) -> dict[str, Any]:
    """Return how far a sweep is, as plain values.

    Its ``state`` is ``running``, ``interrupted`` or ``complete``; ``unknown`` if the folder cannot
    be locked.
    """
    folder, events, confirm_events = sweep.path, sweep.load_events(), sweep.load_confirm_events()
    opening_events, is_locked = sweep.load_opening_events(), sweep.is_locked()
    config = SweepConfig.parse(opening_events[-1].config)
    trials, runs = (TrialHistory(log).trials for log in (events, confirm_events))
    all_trials = trials | runs
    started = Counter(trial.cell for trial in trials.values())
    running = {k: trial for k, trial in all_trials.items() if trial.state == TrialState.RUNNING}
    last_event = max([events[-1], *confirm_events[-1:]], key=lambda event: event.time)
    logs = {"resume": events, "confirm": confirm_events}
    unfinished = [k for k, log in logs.items() if log and not isinstance(log[-1], Completed)]
    ended_state = "interrupted" if unfinished else "complete"
    states = {True: "running", False: ended_state, None: "unknown"}
    best_epochs = [(trial, trial.best_epoch) for trial in trials.values()]
    scores = [(e.best_validation_accuracy, "-".join(t.cell)) for t, e in best_epochs if e]
    best_score, best_cell = max(scores, default=(None, None), key=lambda score: score[0])
    return {
        "name": folder.name,
        "folder": str(folder),
        "state": states[is_locked],
        "run_by": sweep.lock_holder() if is_locked else None,
        "cells": len(config.cells()),
        "trials_ended": len(trials.keys() - running),
        "trials_total": config.trials
        and sum(max(config.trials, started[cell]) for cell in config.cells()),
        "epochs_trained": sum(t.epochs[-1].epoch for t in trials.values() if t.epochs),
        "seconds_since_last_event": max(0.0, time.time() - last_event.time),
        "times_resumed": len(opening_events) - 1,
        "confirm_runs_ended": len(runs.keys() - running) if confirm_events else None,
        "running": [
            {
                "trial": trial.proposed.describe(),
                "epoch": trial.epochs[-1].epoch if trial.epochs else 0,
                "epochs": config.epochs,
                "restarts": len(trial.restarts),
            }
            for trial in running.values()
        ],
        "search_best_percent": None if best_score is None else 100 * best_score,
        "search_best_cell": best_cell,
        "continue_with": sweep.command(unfinished[0]) if unfinished else None,
    }


def status_lines(sweep: SweepSnapshot) -> Iterator[str]:
    """Yield lines that say how far a sweep is."""
    status = sweep_status(sweep)
    folder, state = status["folder"], status["state"]
    if state == "running":
        yield f"{folder} is being run by {status['run_by']}"
    elif state == "unknown":
        yield f"{folder}: it is unknown whether a process runs it, since it cannot be locked"
    else:
        yield f"{folder}: no process runs it"
    goal = f" of {status['trials_total']}" if status["trials_total"] else ""
    ago = format_duration(status["seconds_since_last_event"])
    resumed = _format_times("resumed", status["times_resumed"])
    yield (
        f"{status['trials_ended']}{goal} trials have ended, {status['epochs_trained']} epochs are "
        f"trained; last event {ago} ago{resumed}"
    )
    if status["confirm_runs_ended"] is not None:
        yield f"confirmation: {status['confirm_runs_ended']} runs have ended"
    for trial in status["running"]:
        restarted = _format_times("restarted", trial["restarts"])
        after = f"after epoch {trial['epoch']} of {trial['epochs']}"
        yield f"running: {trial['trial']}, {after}{restarted}"
    if status["continue_with"] and state != "running":
        yield f"to continue: {status['continue_with']}"
    elif not status["continue_with"]:
        yield "it is complete; 'kdtune resume' adds trials, methods or students"


def _format_times(verb: str, count: int) -> str:
    return f", {verb} {count} time{'s' * (count > 1)}" if count else ""


def sweep_list_text(folders: Iterable[Path], output_format: str) -> str:
    """Return a row for each sweep: its state, size and best cell.

    Args:
        folders: those that are no sweep's are left out.
        output_format: see `render_table`.
    """
    rows = []
    for folder in folders:
        if not SweepFolder(folder).is_sweep():
            continue
        try:
            status = sweep_status(SweepSnapshot(folder))
        except UserError:  # one damaged log must not hide the other sweeps
            rows.append({"name": folder.name, "state": "damaged"})
            continue
        kept = ("name", "state", "cells", "trials_ended", "trials_total", "search_best_percent")
        rows.append({key: status[key] for key in (*kept, "search_best_cell")})
    if output_format == "json":
        return json.dumps(rows, indent=2) + "\n"
    return render_table(pd.DataFrame([_list_row(row) for row in rows]), output_format)


def _list_row(row: dict[str, Any]) -> dict[str, str]:
    shown = {"sweep": row["name"], "state": row["state"]}
    if "cells" in row:
        total, best = row["trials_total"], row["search_best_percent"]
        shown |= {"cells": str(row["cells"]), "trials": str(row["trials_ended"])}
        shown["trials"] += f"/{total}" if total else ""
        if best is not None:
            shown |= {"best validation %": f"{best:.2f}", "of": row["search_best_cell"]}
    return shown
