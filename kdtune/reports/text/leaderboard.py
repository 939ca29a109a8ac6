"""Leaderboards and other tables of sweeps, as text."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdtune.log.folder import SweepSnapshot
from kdtune.reports.tables import all_tables, notes
from kdtune.reports.tables.comparison import select_main_pair
from kdtune.reports.tables.leaderboard import SweepTables
from kdtune.reports.tables.learning import describe_chance, learning_sentences
from kdtune.reports.tables.recipe_order import recipe_sentence
from kdtune.reports.tables.rungs import advise_grace_period, rungs_table
from kdtune.reports.tables.sentences import advise_next_step
from kdtune.reports.tables.settings import collect_distributions, range_end_note
from kdtune.reports.tables.several_sweeps import explain_separate_tables, join_leaderboards
from kdtune.reports.tables.ship import NO_LIMITS, ShipLimits, select_ship_set
from kdtune.reports.tables.ship_sentences import ship_view
from kdtune.reports.text.render import render_leaderboards, render_table, to_records


def table_text(path: Path, name: str, output_format: str) -> str:
    """Return a table of a sweep.

    Args:
        path: folder of the sweep.
        name: name of the table in `collect_tables`.
        output_format: see `kdtune.reports.text.render.render_table`.
    """
    folder = SweepSnapshot(path)
    tables = all_tables.collect_tables(folder, all_tables.load_sweep_tables(folder))
    return render_table(all_tables.select_table(tables, name, path), output_format)


def leaderboard_text(
    folders: Sequence[Path], output_format: str, limits: ShipLimits = NO_LIMITS
) -> str:
    """Return which student to ship, which method is better, and the leaderboards of sweeps.

    Args:
        folders: folders of the sweeps; comparable sweeps share a table.
        output_format: ``table`` or ``markdown``; ``csv`` is the leaderboard alone; ``json`` an
            object for a sweep, or one with an object for each of several sweeps.
        limits: what the student to ship may cost.
    """
    sweeps = {str(path): SweepSnapshot(path) for path in folders}
    tables = {name: all_tables.load_sweep_tables(sweep, limits) for name, sweep in sweeps.items()}
    if output_format == "json":
        objects = {name: _make_object(sweeps[name], own) for name, own in tables.items()}
        content = objects if len(objects) > 1 else next(iter(objects.values()))
        return f"{json.dumps(content, indent=2)}\n"
    conditions = {k: all_tables.comparison_conditions(sweep) for k, sweep in sweeps.items()}
    answers: list[str] = []
    below = explain_separate_tables(conditions)
    for name, folder in sweeps.items():
        label = f"{name}: " if len(sweeps) > 1 else ""
        said = learning_sentences(folder.load_events())
        said += notes.answer_sentences(tables[name], name)
        answers += [f"{label}{sentence}" for sentence in said]
        below += [f"{label}{note}" for note in _sweep_notes(folder, tables[name])]
    ship_sets = {name: select_ship_set(own.ship) for name, own in tables.items()}
    views = [
        ({"sweep": [name] * len(ship)} if len(sweeps) > 1 else {}) | ship_view(ship)
        for name, ship in ship_sets.items()
        if len(ship)
    ]
    boards = join_leaderboards(tables, conditions)
    openings = {name: folder.load_opening_events()[0] for name, folder in sweeps.items()}
    teachers = {name: event.teacher for name, event in openings.items() if event.teacher}
    return render_leaderboards(boards, output_format, below, answers, views, teachers)


def _sweep_notes(folder: SweepSnapshot, tables: SweepTables) -> list[str]:
    events, opening = folder.load_events(), folder.load_opening_events()[0]
    sweep_notes = [
        f"Teacher: {opening.teacher.describe()}." if opening.teacher else None,
        describe_chance(opening),
        recipe_sentence(tables.leaderboard, tables.comparison),
        *notes.result_notes(tables),
        notes.better_on_test_note(tables.ship),
        notes.bad_images_note(events),
    ]
    # Advice on a search comes too late once the test images have been read.
    if tables.leaderboard["test_accuracy_percent"].isna().all():
        sweep_notes.append(range_end_note(tables.trials, collect_distributions(events)))
        rungs, grace_period = rungs_table(events), opening.config["grace_period"]
        sweep_notes.append(advise_grace_period(rungs, grace_period))
    return list(filter(None, sweep_notes))


def _make_object(folder: SweepSnapshot, tables: SweepTables) -> dict[str, Any]:
    """Return both answers, the teacher and the leaderboard of a sweep, for JSON."""
    teacher, ship_set = folder.load_opening_events()[0].teacher, select_ship_set(tables.ship)
    first, *smallest = tables.ship_sentences
    pair_rows = to_records(select_main_pair(tables.comparison))
    return {
        "ship": {
            "sentence": first,
            "smallest": next(iter(smallest), None),
            "set": to_records(ship_set) or None,
        },
        "method": pair_rows[0] | {"advice": advise_next_step(pair_rows[0], str(folder.path))}
        if pair_rows
        else None,
        "not_learned": learning_sentences(folder.load_events()),
        "teacher": teacher and teacher.model_dump(mode="json"),
        "leaderboard": to_records(tables.leaderboard),
    }
