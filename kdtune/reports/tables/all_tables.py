"""All tables of a sweep's folder, also while the sweep runs."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from kdtune.config.recipes import DEFAULT_RECIPE
from kdtune.errors import UserError
from kdtune.log.folder import SweepFolder
from kdtune.reports.tables.leaderboard import SweepTables, build_sweep_tables
from kdtune.reports.tables.log_tables import bad_images_table, epochs_table, loss_scales_table
from kdtune.reports.tables.plan import plan_vs_actual, read_plan
from kdtune.reports.tables.rungs import rungs_table
from kdtune.reports.tables.search_curve import search_curve_table
from kdtune.reports.tables.settings import collect_distributions, settings_table
from kdtune.reports.tables.ship import NO_LIMITS, ShipLimits


def load_sweep_tables(folder: SweepFolder, limits: ShipLimits = NO_LIMITS) -> SweepTables:
    """Make the tables that say how good each cell is.

    Args:
        folder: the sweep's folder.
        limits: what the student to ship may cost.
    """
    config, (image_scores, groups) = folder.load_config(), folder.load_image_scores()
    logs = folder.load_events(), folder.load_confirm_events()
    return build_sweep_tables(*logs, image_scores, groups, config.min_difference, limits)


def collect_tables(folder: SweepFolder, tables: SweepTables) -> dict[str, pd.DataFrame]:
    """Return all tables by name; optional tables without a row are left out.

    Args:
        folder: the sweep's folder.
        tables: result of `load_sweep_tables`.
    """
    events = folder.load_events()
    opening = folder.load_opening_events()[0]
    epochs, chance = epochs_table(events), opening.chance
    spaces, first_rung = collect_distributions(events), opening.config["grace_period"]
    named_tables = {
        "trials": tables.trials,
        "epochs": epochs,
        "leaderboard": tables.leaderboard,
        "comparison": tables.comparison,
        "search_curve": search_curve_table(tables.trials, epochs, chance),
        "rungs": rungs_table(events),
        "settings": settings_table(tables.trials, epochs, spaces, first_rung, chance),
        "loss_scales": loss_scales_table(events),
        "runs": tables.runs,
        "models": tables.models,
        "ship": tables.ship,
        "bad_images": bad_images_table(events),
    }
    if (plan := read_plan(folder)) is not None:
        named_tables["plan"] = plan_vs_actual(plan, events)
    always_kept = ("trials", "epochs", "leaderboard", "comparison", "rungs")
    return {k: table for k, table in named_tables.items() if len(table) or k in always_kept}


def select_table(tables: Mapping[str, pd.DataFrame], name: str, path: Path) -> pd.DataFrame:
    """Return a table by its name.

    Args:
        tables: result of `collect_tables`.
        name: name of the table.
        path: folder of the sweep, for the error.
    """
    if name not in tables:
        raise UserError(f"{path} has no table '{name}'; there are {', '.join(tables)}.")
    return tables[name]


def comparison_conditions(folder: SweepFolder) -> dict[str, object]:
    """Return what sweeps must have in common to share a table."""
    opening = folder.load_opening_events()[0]
    latest_opening = [opening, *folder.load_confirm_openings()][-1]
    return {
        "data": [opening.data.fingerprint, latest_opening.data.test_fingerprint],
        "teacher": opening.teacher and opening.teacher.sha256,
        "image size": opening.config["image_size"],
        "recipe": opening.config.get("recipe", [DEFAULT_RECIPE]),
        "epochs": opening.config["epochs"],
        "metric": opening.metric,
    }
