"""A sweep's plan as a table, and beside it what the sweep really took."""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from kdtune.errors import UserError
from kdtune.log.events import Event
from kdtune.log.folder import SweepFolder

COLUMNS = ["what", "planned", "actual", "actual_over_planned"]
"""Of `compared`."""


SIZE = (
    "trials", "epochs_total", "time_budget", "methods", "models", "baselines", "cache_gb",
    "cpus_per_trial", "gpus_per_trial", "concurrent",
)  # fmt: skip
"""Settings that may be changed when a sweep is resumed, and change what it takes."""


def read_plan(folder: SweepFolder) -> dict[str, Any] | None:
    """The plan with which a sweep began; None without one.

    Raises:
        UserError: it is damaged.
    """
    try:
        plan = json.loads(folder.plan.read_text(encoding="utf-8"))
        assert {row["slots"] for row in plan["rows"]}
        return plan
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AssertionError):
        raise UserError(f"{folder.plan} is damaged; remove it.") from None


def compared(plan: dict[str, Any], events: Sequence[Event]) -> pd.DataFrame:
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
        "wall seconds": (row["wall"], wall_seconds(events)),
        "device seconds": (row["training"], sum(event["seconds"] for event in epochs)),
        "epochs": (row["epochs"], len(epochs)),
        "trials": (row["trials"], sum(event["event"] == "asked" for event in events)),
    }
    same = not _changed(events)
    rows = [
        (what, *pair, pair[1] / pair[0] if same and pair[0] else None)
        for what, pair in pairs.items()
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _changed(events: Sequence[Event]) -> bool:
    """Whether a sweep was resumed with another size, or other resources, than it began with."""
    opened = [event["config"] for event in events if event["event"] in ("sweep", "resumed")]
    return any(config[key] != opened[0][key] for config in opened for key in SIZE)


def wall_seconds(events: Sequence[Event]) -> float:
    """How long drivers ran, without what they prepared."""
    before, base, session = 0.0, 0.0, 0.0
    for event in events:
        if event["event"] in ("sweep", "resumed"):
            before, base, session = before + session, event["session_seconds"], 0.0
        session = max(session, event["session_seconds"] - base)
    return before + session
