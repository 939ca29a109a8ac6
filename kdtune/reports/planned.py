"""A sweep's plan as a table, and beside it what the sweep really took."""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from kdtune.errors import UserError
from kdtune.log import Event
from kdtune.quantities import amount, duration
from kdtune.reports.blocks import Block, Grid, Words
from kdtune.reports.render import render_table
from kdtune.results import SweepFolder

COLUMNS = ["what", "planned", "actual", "actual_over_planned"]
"""Of `compared`."""


SIZE = (
    "trials", "epochs_total", "time_budget", "methods", "models", "baselines", "cache_gb",
    "cpus_per_trial", "gpus_per_trial", "concurrent",
)  # fmt: skip
"""Settings that may be changed when a sweep is resumed, and change what it takes."""


def plan_text(plan: dict[str, Any], form: str) -> str:
    """A plan for people or programs.

    Args:
        plan: see `kdtune.tuning.plan.Plan`.
        form: ``json``, all of it; ``csv``, its rows unrounded; ``table`` or ``markdown``, its rows
            with what keeps each from being faster, and its notes.
    """
    if form == "json":
        return json.dumps(plan, indent=2) + "\n"
    if form == "csv":
        return render_table(pd.DataFrame(plan["rows"]), form)
    shown = pd.DataFrame([_shown(row) for row in plan["rows"]])
    shown.loc[0, "slots"] += " (here)"
    limits = [f"{row['slots']:,}: {row['limit']}." for row in plan["rows"]]
    return f"{render_table(shown, form)}\n" + "\n".join([*limits, *plan["notes"]]) + "\n"


def _shown(row: dict[str, Any]) -> dict[str, str]:
    disk = row["cache_bytes"] + row["checkpoint_bytes"] + row["log_bytes"]
    return {
        "slots": f"{row['slots']:,}",
        "wall time": duration(row["wall"]),
        "device hours": f"{row['training'] / 3600:.2f}",
        "trials": f"{row['trials']:,}",
        "epochs": f"{row['epochs']:,}",
        "saved by stopping": f"{row['saved']:,}",
        "idle %": f"{100 * row['idle_share']:.0f}",
        "driver busy %": f"{100 * row['driver_share']:.0f}",
        "disk": amount(disk),
        "memory of a node": amount(row["node_memory_bytes"]),
    }


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


def planned(folder: SweepFolder) -> list[Block]:
    """What the report says of a plan; nothing without one.

    Raises:
        UserError: it is damaged.
    """
    if (plan := read_plan(folder)) is None:
        return []
    events = folder.events()
    table = compared(plan, events)
    so_far = "" if events[-1]["event"] == "complete" else " The sweep is not complete."
    so_far += " The sweep was changed after the plan." if _changed(events) else ""
    times = ("wall seconds", "device seconds")

    def texts(column: str) -> list[str]:
        pairs = zip(table["what"], table[column], strict=True)
        return [duration(value) if what in times else f"{value:,.0f}" for what, value in pairs]

    ratios = table["actual_over_planned"]
    return [
        Grid(
            f"The plan that was made before, and what the sweep took with {plan['slots']} slots."
            f"{so_far}",
            {
                "": [str(what).removesuffix(" seconds") for what in table["what"]],
                "planned": texts("planned"),
                "actual": texts("actual"),
                "actual / planned": ["" if pd.isna(r) else f"{r:.2f}" for r in ratios],
            },
        ),
        *map(Words, plan["notes"][1:2]),
    ]
