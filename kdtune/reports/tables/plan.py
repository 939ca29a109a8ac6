"""A sweep's plan as a table, and beside it what the sweep really took."""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from kdtune.errors import UserError
from kdtune.log.events import Event
from kdtune.log.folder import SweepFolder

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
    epochs = [event for event in events if event["event"] == "epoch"]
    pairs = {
        "wall seconds": (row["wall_seconds"], wall_seconds(events)),
        "device seconds": (row["training_seconds"], sum(event["seconds"] for event in epochs)),
        "epochs": (row["epochs"], len(epochs)),
        "trials": (row["trials"], sum(event["event"] == "asked" for event in events)),
    }
    is_unchanged = not is_changed_since_plan(events)
    rows = [
        (
            quantity,
            *planned_and_actual,
            planned_and_actual[1] / planned_and_actual[0]
            if is_unchanged and planned_and_actual[0]
            else None,
        )
        for quantity, planned_and_actual in pairs.items()
    ]
    return pd.DataFrame(rows, columns=PLAN_COLUMNS)


def is_changed_since_plan(events: Sequence[Event]) -> bool:
    """Whether a sweep was resumed with another size, or other resources, than it began with."""
    configs = [event["config"] for event in events if event["event"] in ("sweep", "resumed")]
    return any(config[key] != configs[0][key] for config in configs for key in SIZE_SETTINGS)


def wall_seconds(events: Sequence[Event]) -> float:
    """How long drivers ran, without what they prepared."""
    previous_seconds, session_offset, session_seconds = 0.0, 0.0, 0.0
    for event in events:
        if event["event"] in ("sweep", "resumed"):
            previous_seconds, session_offset, session_seconds = (
                previous_seconds + session_seconds,
                event["session_seconds"],
                0.0,
            )
        session_seconds = max(session_seconds, event["session_seconds"] - session_offset)
    return previous_seconds + session_seconds
