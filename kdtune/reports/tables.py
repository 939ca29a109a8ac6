"""A sweep's tables: plain events in, DataFrames out, and their printed forms.

Accuracies in the tables of trials and epochs are shares of 1; columns that end in ``_percent``
or ``_points`` are times 100. Search figures only: nothing here says that one method beats another.
"""

import io
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdtune.results import STATES

SOUND = ("finished", "stopped")
"""States of trials whose figures can be had again."""

CAVEAT = "Best single runs, not yet a comparison: seed noise and search luck are not in it."
"""Said wherever a search's ranking is shown."""

LEADERBOARD = [
    "model",
    "method",
    "status",
    "search_best_percent",
    "trials_started",
    "trials_finished",
    "trials_stopped",
    "trials_diverged",
    "trials_crashed",
    "search_epochs",
    "search_device_seconds",
    "trial_id",
    "configuration",
]
PRINTED = {
    "sweep": "sweep",
    "model": "model",
    "method": "method",
    "search_best_percent": "best validation %",
    "trials_started": "trials",
    "trials_finished": "finished",
    "trials_stopped": "stopped",
    "trials_diverged": "diverged",
    "trials_crashed": "crashed",
    "search_epochs": "epochs",
    "search_device_seconds": "device s",
    "settings": "settings",
}
"""Columns of the printed leaderboard and their headings."""

RARE = ("trials_diverged", "trials_crashed")
"""Columns that are printed only if something is in them."""


FORMULA = ("=", "+", "-", "@")
"""What spreadsheets take for the beginning of a formula."""


TRIAL = [
    "trial_id",
    "method",
    "model",
    "number",
    "origin",
    "state",
    "reason",
    "restarts",
    "epochs",
    "best_validation_accuracy",
    "best_epoch",
    "last_validation_accuracy",
    "device_seconds",
    "device",
    "threads",
]
"""Columns of the table of trials; hyperparameters and ``configuration`` follow."""

EPOCH = ["trial_id", "method", "model", "epoch", "best_validation_accuracy"]
"""Columns that the table of epochs has also without any."""


def epochs_table(events: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row an epoch of a trial, in the order in which they were reported.

    Columns:
        trial_id, method, model: whose epoch it is.
        epoch: from 1.
        lr: learning rate during the epoch.
        train_loss: mean of the method's loss over the training images.
        train_accuracy, validation_accuracy: shares of 1.
        validation_loss: mean cross-entropy.
        best_validation_accuracy: best up to here, the objective of the search.
        loss_<part>, loss_<part>_weighted: means of the parts of the training loss.
        seconds: training and validation of this epoch on the trial's device.
        device, threads: where it ran.
    """
    rows = [
        {key: value for key, value in event.items() if key not in ("event", "time")}
        for event in events
        if event["event"] == "epoch"
    ]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=EPOCH)


def trials_table(events: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row a trial, in the order in which they were proposed.

    Columns:
        trial_id, method, model, number: the trial, and its place in its cell, from 0.
        origin: ``start`` (a known good point) or ``sampler``.
        state: ``finished``, ``stopped``, ``diverged``, ``crashed``; ``running`` if it never ended.
        reason: why it ended.
        restarts: how often it was begun again in another process.
        epochs: epochs trained.
        best_validation_accuracy: share of 1, the best of its epochs; empty if there is none.
        best_epoch: the first epoch that reached it.
        last_validation_accuracy: share of 1, of the last epoch.
        device_seconds: sum over its epochs.
        device, threads: where it ran.
        <hyperparameter>: the value that was searched; empty where a space does not have it.
        configuration: the complete settings, as JSON.
    """
    rows: dict[str, dict[str, Any]] = {}
    hyperparameters: dict[str, None] = {}  # a set that keeps its order
    for event in events:
        if event["event"] == "asked":
            hyperparameters |= dict.fromkeys(event["parameters"])
            rows[event["trial_id"]] = {
                **{key: event[key] for key in ("trial_id", "method", "model", "number", "origin")},
                "state": "running",
                "reason": "",
                "restarts": 0,
                "epochs": 0,
                "best_validation_accuracy": np.nan,
                "best_epoch": pd.NA,
                "last_validation_accuracy": np.nan,
                "device_seconds": 0.0,
                "device": "",
                "threads": pd.NA,
                **event["parameters"],
                "configuration": json.dumps(event["config"]),
            }
        elif event["event"] == "epoch":
            row = rows[event["trial_id"]]
            if not event["validation_accuracy"] <= row["best_validation_accuracy"]:
                row["best_validation_accuracy"] = event["validation_accuracy"]
                row["best_epoch"] = event["epoch"]
            row["last_validation_accuracy"] = event["validation_accuracy"]
            row["epochs"] = event["epoch"]
            row["device_seconds"] += event["seconds"]
            row["device"], row["threads"] = event["device"], event["threads"]
        elif event["event"] == "restarted":
            rows[event["trial_id"]]["restarts"] += 1
        elif event["event"] == "ended":
            rows[event["trial_id"]].update(state=event["state"], reason=event["reason"])
    columns = [*TRIAL, *hyperparameters, "configuration"]
    table = pd.DataFrame(list(rows.values()), columns=columns)
    return table.astype({"best_epoch": "Int64", "threads": "Int64"})


def leaderboard_table(trials: pd.DataFrame) -> pd.DataFrame:
    """One row a cell, sorted by model, then by the best validation accuracy, best first.

    Columns:
        model, method: the cell.
        status: ``not_confirmed``; without a sound trial ``running`` while there is hope, then
            ``failed``.
        search_best_percent: best validation accuracy of a sound trial, one that finished or was
            stopped; one that diverged or crashed cannot be repeated.
        trials_started, trials_finished, trials_stopped, trials_diverged, trials_crashed: counts;
            a trial that is still running is only among the started.
        search_epochs, search_device_seconds: sums over all trials.
        trial_id, configuration: the best trial (the earliest of equals), and its settings as JSON.
    """
    rows = []
    for (model, method), cell in trials.groupby(["model", "method"]):
        sound = cell[cell["state"].isin(SOUND)].dropna(subset="best_validation_accuracy")
        ranked = sound.sort_values("best_validation_accuracy", ascending=False, kind="stable")
        best = ranked.iloc[0] if len(ranked) else None
        unfinished = (cell["state"] == "running").any()
        counts = cell["state"].value_counts()
        rows.append(
            {
                "model": model,
                "method": method,
                "status": (
                    "not_confirmed" if best is not None else "running" if unfinished else "failed"
                ),
                "search_best_percent": (
                    100 * best.best_validation_accuracy if best is not None else np.nan
                ),
                "trials_started": len(cell),
                **{f"trials_{state}": int(counts.get(state, 0)) for state in STATES},
                "search_epochs": int(cell["epochs"].sum()),
                "search_device_seconds": float(cell["device_seconds"].sum()),
                "trial_id": best.trial_id if best is not None else None,
                "configuration": best.configuration if best is not None else None,
            }
        )
    table = pd.DataFrame(rows, columns=LEADERBOARD)
    return table.sort_values(
        ["model", "search_best_percent"], ascending=[True, False], kind="stable", ignore_index=True
    )


def bad_images_table(events: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row an image that was left out since it cannot be read.

    Columns:
        split: ``train``, ``validation`` or ``test``.
        file: its path.
        reason: why it cannot be read.
    """
    opened = (event for event in events if event["event"] == "sweep")
    bad = next(opened, {}).get("data", {}).get("skipped_images", [])
    return pd.DataFrame(bad, columns=["split", "file", "reason"])


def bad_images_note(events: Iterable[dict[str, Any]]) -> str | None:
    """Say that images were left out; None if all were read."""
    table = bad_images_table(events)
    if table.empty:
        return None
    counts = ", ".join(
        f"{count} {split}" for split, count in table["split"].value_counts().items()
    )
    return f"Images that cannot be read were left out: {counts} (bad_images.csv)."


def to_csv(table: pd.DataFrame) -> str:
    """A table as CSV in which no text is a formula: what may be one gets an apostrophe."""

    def harmless(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return f"'{_printable(value)}" if value.startswith(FORMULA) else _printable(value)

    safe = table.rename(columns=harmless)
    for column in safe.columns:
        if not pd.api.types.is_numeric_dtype(safe[column]):
            safe[column] = [harmless(value) for value in safe[column]]
    return safe.to_csv(index=False)


def join_sweeps(trials: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The leaderboards of several sweeps, one under the other.

    Args:
        trials: each sweep's trials, by its name.

    Returns:
        As `leaderboard_table`; with a column ``settings``, the searched values of the best trial
        in short, and with a first column ``sweep`` where there is more than one sweep.
    """
    boards = []
    for name, table in trials.items():
        board = leaderboard_table(table)
        board["settings"] = [_short_settings(table, trial_id) for trial_id in board["trial_id"]]
        if len(trials) > 1:
            board.insert(0, "sweep", name)
        boards.append(board)
    return pd.concat(boards, ignore_index=True)


def _short_settings(trials: pd.DataFrame, trial_id: str | None) -> str:
    if pd.isna(trial_id):
        return ""
    trial = trials.set_index("trial_id").loc[trial_id]
    values = trial.drop([*TRIAL[1:], "configuration"]).dropna()
    return " ".join(f"{k}={v:.3g}" if _real(v) else f"{k}={v}" for k, v in values.items())


def _plain(text: str) -> str:
    """Text that is shown as it is: no control characters, and no styles of rich's."""
    return escape(_printable(text))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _real(value: object) -> bool:
    return isinstance(value, float | np.floating)


def render(leaderboard: pd.DataFrame, form: str, notes: Iterable[str] = ()) -> str:
    """Print a leaderboard.

    Args:
        leaderboard: with a column ``settings``, and ``sweep`` where several are joined.
        form: ``table`` (for a terminal) and ``markdown`` show the main columns; ``csv`` and
            ``json`` all of them, unrounded, and nothing else.
        notes: lines below the table.
    """
    if form == "csv":
        return to_csv(leaderboard.drop(columns="settings"))
    if form == "json":
        plain = leaderboard.drop(columns="settings")
        return plain.to_json(orient="records", indent=2, double_precision=15) + "\n"
    columns = [
        column
        for column in PRINTED
        if column in leaderboard and (column not in RARE or leaderboard[column].any())
    ]
    markdown = form == "markdown"
    table = Table(box=box.MARKDOWN if markdown else box.SIMPLE_HEAD)
    for column in columns:
        numeric = pd.api.types.is_numeric_dtype(leaderboard[column])
        table.add_column(PRINTED[column], justify="right" if numeric else "left")
    for row in leaderboard[columns].itertuples(index=False):
        cells = ("" if pd.isna(v) else f"{v:.2f}" if _real(v) else _plain(str(v)) for v in row)
        table.add_row(*(cell.replace("|", "\\|") if markdown else cell for cell in cells))
    out = io.StringIO()
    Console(file=out, width=1000).print(table)
    lines = (line.rstrip() for line in out.getvalue().splitlines())
    return "\n".join(line for line in lines if line) + "\n\n" + "\n".join([CAVEAT, *notes]) + "\n"
