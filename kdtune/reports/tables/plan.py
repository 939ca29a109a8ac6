"""The plan of a sweep, and the sweep's actual cost beside it."""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from kdtune.errors import UserError
from kdtune.log.events import EpochFinished, Event, SweepOpening, TrialProposed
from kdtune.log.folder import SweepFolder
from kdtune.log.stopwatch import Stopwatch
from kdtune.reports.tables.columns import PLAN

_SIZE_SETTINGS = (
    "trials", "total_epochs", "time_budget", "methods", "models", "baselines", "cache_gb",
    "cpus_per_trial", "gpus_per_trial", "max_concurrent",
)  # fmt: skip
"""Settings that may change when a sweep is resumed, and change its cost."""


def read_plan(folder: SweepFolder) -> dict[str, Any] | None:
    """Return the plan that a sweep started with; None without one."""
    try:
        plan: dict[str, Any] = json.loads(folder.plan_path.read_text(encoding="utf-8"))
        assert {row["slots"] for row in plan["rows"]}
        return plan
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AssertionError):
        raise UserError(f"{folder.plan_path} is damaged; remove it.") from None


def plan_vs_actual(plan: dict[str, Any], events: Sequence[Event]) -> pd.DataFrame:
    """Return `PLAN`: the first row of a plan, and what the sweep took so far.

    Args:
        plan: result of `read_plan`.
        events: events of the sweep so far.
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
    return PLAN.make_frame(
        (quantity, planned, actual, actual / planned if is_unchanged and planned else None)
        for quantity, (planned, actual) in pairs.items()
    )


def is_changed_since_plan(events: Sequence[Event]) -> bool:
    """Return True if a sweep was resumed with another size or other resources."""
    configs = [event.config for event in events if isinstance(event, SweepOpening)]
    return any(config[key] != configs[0][key] for config in configs for key in _SIZE_SETTINGS)
