"""Sentences about the student to ship: at most two, of at most 25 words each."""

from typing import Any

import pandas as pd

from kdtune.reports.tables.columns import SHIP
from kdtune.reports.tables.sentences import display_name, format_interval, format_points
from kdtune.reports.tables.ship import IN_SET, NO_LIMITS, SHIP_VIEW, ShipLimits


def describe_ship_set(
    ship: pd.DataFrame, has_test_images: bool = True, limits: ShipLimits = NO_LIMITS
) -> list[str]:
    """Return which student to ship, and the smallest one that is not shown to be worse.

    Args:
        ship: the table `SHIP`.
        has_test_images: False if the data have none.
        limits: limits of the candidates.
    """
    candidates = ship.dropna(subset="in_ship_set")
    if candidates.empty:
        return ["No student can be shipped: no trial has succeeded yet."]
    best, *others = candidates.to_dict("records")
    scope = "Within the limits" if limits != NO_LIMITS else ""
    if best["in_ship_set"] != "best":
        return [_describe_search_leader(best, candidates, has_test_images)]
    if pd.isna(best["test_half_width_points"]):
        score = f"{best['validation_accuracy_percent']:.2f} %"
        return [
            f"{scope or 'So far'} validation alone chose {cell_name(best)} ({score}); without its "
            "test results nobody can say how sure that is."
        ]
    ship_text = f"{f'{scope} ship' if scope else 'Ship'} {cell_name(best)}"
    first = f"{ship_text}: {_format_accuracy(best)} on test; {_describe_others(others)}."
    members = [row for row in others if row["in_ship_set"] in IN_SET]
    return [first, *_describe_smallest(best, members)]


def ship_view(ship: pd.DataFrame) -> dict[str, list[str]]:
    """Return the candidates of `SHIP` as they are shown, by heading."""
    shown = ship.dropna(subset="in_ship_set").dropna(axis="columns", how="all")
    students = [cell_name(row) for row in shown.to_dict("records")]
    return {"student": students, **SHIP.to_texts(shown, *SHIP_VIEW)}


def cell_name(row: Any) -> str:
    """Return the name of a student and how it was trained, from a row of a table."""
    return f"{display_name(row['method'])} on {row['model']}"


def _describe_search_leader(
    best: dict[str, Any], candidates: pd.DataFrame, has_test_images: bool
) -> str:
    leader = f"{cell_name(best)} leads by search score ({best['search_best_percent']:.2f} %)"
    if not has_test_images:
        return f"Without test images nobody can say how sure it is: on validation {leader}."
    statuses = set(candidates["status"])
    if "incomplete" in statuses:
        return f"Fewer than 3 seeds are finished, too few to choose: so far {leader}."
    if statuses & {"unstable", "failed"}:
        return f"No confirmed student is without a diverged seed: only {leader}."
    return f"Not confirmed: {leader}, which is not a result yet."


def _describe_others(others: list[dict[str, Any]]) -> str:
    members = [row for row in others if row["in_ship_set"] in IN_SET]
    if not others:
        return "no other student is a candidate"
    worse = f"worse by {others[0]['min_difference_points']:g} points"
    if not members:
        subject = cell_name(others[0]) if len(others) == 1 else f"all {len(others)} others"
        return f"{subject} {'is' if len(others) == 1 else 'are'} shown to be {worse}"
    if len(members) == 1:
        return f"{cell_name(members[0])} is not shown to be {worse}"
    if len(members) == len(others):
        return f"none of {len(others)} others is shown to be {worse}"
    return f"{len(members)} of {len(others)} others are not shown to be {worse}"


def _describe_smallest(best: dict[str, Any], members: list[dict[str, Any]]) -> list[str]:
    measured = [row for row in [best, *members] if not pd.isna(row["parameters"])]
    row = min(measured, key=lambda member: member["parameters"], default=best)
    if pd.isna(best["parameters"]) or row["parameters"] == best["parameters"]:
        return []
    sizes = f"{row['parameters']:,} parameters instead of {best['parameters']:,}"
    high = row["behind_best_high_points"]
    loss = f", at most {format_points(max(high, 0), 0)} points worse (95 %)"
    return [f"Of these {cell_name(row)} is the smallest: {sizes}{'' if pd.isna(high) else loss}."]


def _format_accuracy(row: dict[str, Any]) -> str:
    """Return the test accuracy with ±, or with the ends of the interval if they are unequal."""
    value, width = row["test_accuracy_percent"], row["test_half_width_points"]
    low, high = row["test_low_percent"], row["test_high_percent"]
    if max(abs(value - width - low), abs(value + width - high)) < 0.1 * width:
        return f"{format_interval(value, width)} %"
    ends = "–".join(format_points(end, width) for end in (low, high))
    return f"{format_points(value, width)} % ({ends})"
