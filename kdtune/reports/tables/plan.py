"""A sweep's plan as a table, and beside it what the sweep really took."""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from kdtune.errors import UserError
from kdtune.log.events import EpochFinished, Event, SweepOpening, TrialProposed
from kdtune.log.folder import SweepFolder
from kdtune.log.stopwatch import Stopwatch

PLAN_COLUMNS = ["what", "planned", "actual", "actual_over_planned"]
"""Of `plan_vs_actual`."""


SIZE_SETTINGS = (
    "trials", "total_epochs", "time_budget", "methods", "models", "baselines", "cache_gb",
    "cpus_per_trial", "gpus_per_trial", "max_concurrent",
)  # fmt: skip
"""Settings that may be changed when a sweep is resumed, and change what it takes."""


def read_plan(folder: SweepFolder) -> dict[str, Any] | None:
    """The plan with which a sweep began; None without one.

    Raises:
        UserError: it is damaged.
    """
    try:
        plan = json.loads(folder.plan_path.read_text(encoding="utf-8"))
        assert {row["slots"] for row in plan["rows"]}
        return plan
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AssertionError):
        raise UserError(f"{folder.plan_path} is damaged; remove it.") from None


def plan_vs_actual(plan: dict[str, Any], events: Sequence[Event]) -> pd.DataFrame:
    """One row a figure: what was planned, and what it is.

    Args:
        plan: for the slots that the sweep had, in its first row.
        events: of the sweep so far.

    Columns:
        what: ``wall seconds``, from the first proposal on; ``device seconds`` of epochs;
            ``epochs``; ``trials``.
        planned, actual: the figure.
        actual_over_planned: ratio; empty if the sweep was changed since.
    """
    row = plan["rows"][0]
    epochs = [event for event in events if isinstance(event, EpochFinished)]
    stopwatch = Stopwatch()
    for event in events:
        stopwatch.fold(event)
    pairs = {
        "wall seconds": (row["wall_seconds"], stopwatch.logged_seconds),
        "device seconds": (row["training_seconds"], sum(epoch.seconds for epoch in epochs)),
        "epochs": (row["epochs"], len(epochs)),
        "trials": (row["trials"], sum(isinstance(event, TrialProposed) for event in events)),
    }
    is_unchanged = not is_changed_since_plan(events)
    rows = [
        (quantity, planned, actual, actual / planned if is_unchanged and planned else None)
        for quantity, (planned, actual) in pairs.items()
    ]
    return pd.DataFrame(rows, columns=PLAN_COLUMNS)


def is_changed_since_plan(events: Sequence[Event]) -> bool:
    """Whether a sweep was resumed with another size, or other resources, than it began with."""
    configs = [event.config for event in events if isinstance(event, SweepOpening)]
    return any(config[key] != configs[0][key] for config in configs for key in SIZE_SETTINGS)
