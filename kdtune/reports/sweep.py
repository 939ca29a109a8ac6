"""What is made of a sweep's folder, also while the sweep runs: leaderboard and tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from kdtune.errors import UserError
from kdtune.reports.curves import search_curve_table
from kdtune.reports.leaderboard import SweepTables, join_sweeps, kept_apart, sweep_tables
from kdtune.reports.planned import compared, read_plan
from kdtune.reports.points import ship_points
from kdtune.reports.render import render, render_table, result_notes
from kdtune.reports.rungs import grace_advice, rungs_table
from kdtune.reports.settings import distributions, settings_table
from kdtune.reports.tables import bad_images_note, bad_images_table, epochs_table
from kdtune.results import Snapshot, SweepFolder


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


def table_text(path: Path, name: str, form: str) -> str:
    """A table of a sweep by its name.

    Args:
        path: the sweep's folder.
        name: of `every_table`.
        form: see `kdtune.reports.render.render`.

    Raises:
        UserError: there is no such table.
    """
    folder = Snapshot(path)
    known = every_table(folder, tables_of(folder))
    return render_table(named_table(known, name, path), form)


def leaderboard_text(folders: Sequence[Path], form: str) -> str:
    """The leaderboards of sweeps, of comparable ones in one table, and what they say.

    Args:
        folders: of the sweeps.
        form: see `kdtune.reports.render.render`.
    """
    sweeps = {str(path): Snapshot(path) for path in folders}
    tables = {name: tables_of(folder) for name, folder in sweeps.items()}
    abouts = {name: about_of(folder) for name, folder in sweeps.items()}
    notes = kept_apart(abouts)
    for name, folder in sweeps.items():
        events, own = folder.events(), tables[name]
        said = result_notes(own.leaderboard, own.comparison, own.runs)
        said += [words for words in (bad_images_note(events), grace_advice(events)) if words]
        notes += [f"{name}: {words}" for words in said] if len(sweeps) > 1 else said
    return render(join_sweeps(tables, abouts), form, notes)


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
