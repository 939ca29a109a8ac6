"""What is made of a sweep's folder, also while the sweep runs: leaderboard and tables."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from kdtune.errors import UserError
from kdtune.log.folder import SweepFolder
from kdtune.reports.tables.figure_data import ship_points
from kdtune.reports.tables.leaderboard import SweepTables, sweep_tables
from kdtune.reports.tables.log_tables import bad_images_table, epochs_table
from kdtune.reports.tables.plan import compared, read_plan
from kdtune.reports.tables.rungs import rungs_table
from kdtune.reports.tables.search_curve import search_curve_table
from kdtune.reports.tables.settings import distributions, settings_table


def tables_of(folder: SweepFolder) -> SweepTables:
    """The tables that say how good each cell is.

    Raises:
        UserError: this is no sweep's folder, or a log is damaged.
    """
    settings, (right, groups) = folder.settings(), folder.right()
    logs = folder.events(), folder.confirm_events()
    return sweep_tables(*logs, right, groups, settings.min_difference)


def every_table(folder: SweepFolder, tables: SweepTables) -> dict[str, pd.DataFrame]:
    """All tables that a sweep's folder holds, by name; those without a row left out."""
    events = folder.events()
    opened = folder.opened()[0]
    epochs = epochs_table(events)
    chance = 1 / len(opened["data"]["classes"])
    first_rung = opened["config"]["grace_period"]
    known = {
        "trials": tables.trials,
        "epochs": epochs,
        "leaderboard": tables.leaderboard,
        "comparison": tables.comparison,
        "search_curve": search_curve_table(tables.trials, epochs, chance),
        "rungs": rungs_table(events),
        "settings": settings_table(
            tables.trials, epochs, distributions(events), first_rung, chance
        ),
        "confirm": tables.runs,
        "models": tables.models,
        "students": ship_points(tables.leaderboard).dropna(subset="parameters"),
        "bad_images": bad_images_table(events),
    }
    if (plan := read_plan(folder)) is not None:
        known["plan"] = compared(plan, events)
    always = ("trials", "epochs", "leaderboard", "comparison", "rungs")
    return {name: table for name, table in known.items() if len(table) or name in always}


def named_table(known: Mapping[str, pd.DataFrame], name: str, path: Path) -> pd.DataFrame:
    """One of `every_table`, by its name.

    Raises:
        UserError: the sweep in `path` has no such table.
    """
    if name not in known:
        raise UserError(f"{path} has no table '{name}'; there are {', '.join(known)}.")
    return known[name]


def about_of(folder: SweepFolder) -> dict[str, object]:
    """What sweeps must have in common to stand in one table."""
    opened = folder.opened()[0]
    judged = [opened, *(e for e in folder.confirm_events() if e["event"] == "confirm")][-1]
    return {
        "data": [opened["data"]["fingerprint"], judged["data"].get("test_fingerprint")],
        "teacher": (opened["teacher"] or {}).get("sha256"),
        "image size": opened["config"]["image_size"],
        "epochs": opened["config"]["epochs"],
    }
