"""Tables as text, CSV and JSON, and the notes below a leaderboard."""

import io
import json
import math
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from kdtune.log.events import TeacherSummary
from kdtune.reports.tables.columns import LEADERBOARD_VIEW
from kdtune.reports.tables.leaderboard import redundant_columns
from kdtune.reports.tables.notes import SEARCH_CAVEAT
from kdtune.runtime.console import printable

SEARCH_COLUMNS = (
    "sweep", "model", "method", "search_best_percent", "validation_balanced_accuracy_percent",
    "trials_started", "trials_finished", "trials_stopped", "trials_diverged", "trials_crashed",
    "search_epochs", "search_device_seconds", "settings",
)  # fmt: skip
"""Columns of the printed leaderboard while nothing is confirmed."""

CONFIRM_COLUMNS = (
    "sweep", "model", "rank", "method", "status", "test_accuracy_percent",
    "test_balanced_accuracy_percent",
    "gain_over_student_points", "validation_accuracy_percent", "search_best_percent",
    "optimism_gap_points", "seeds_finished", "trials_started", "device_hours", "settings",
)  # fmt: skip
"""Columns of the printed leaderboard once something is confirmed."""

_TEXT_HEADINGS = ("sweep", "student", "ship", "model", "method", "status", "state", "settings")
"""Headings of columns that are aligned left, and never wrapped."""


def render_leaderboards(
    leaderboards: Sequence[pd.DataFrame],
    output_format: str,
    notes: Iterable[str] = (),
    answers: Iterable[str] = (),
    ship_views: Iterable[Mapping[str, Sequence[str]]] = (),
    teachers: Mapping[str, TeacherSummary] | None = None,
) -> str:
    """Return leaderboards as text. Search scores never appear without the `SEARCH_CAVEAT`.

    Args:
        leaderboards: result of `join_leaderboards`.
        output_format: ``table`` and ``markdown`` have the main columns, answers and notes; ``csv``
            has all columns of all leaderboards in one table, unrounded.
        notes: lines below the tables.
        answers: lines above the tables.
        ship_views: tables between the answers and the leaderboards.
        teachers: those of the sweeps by name; each gets a row below the cells of its sweep, but
            not in ``csv``, whose rows are cells.
    """
    joined = pd.concat(leaderboards, ignore_index=True)
    if output_format == "csv":
        return to_csv(joined.drop(columns="settings", errors="ignore"))
    unconfirmed = joined["validation_accuracy_percent"].isna()
    caveat = [SEARCH_CAVEAT] if unconfirmed.all() else []
    if unconfirmed.any() and not unconfirmed.all():
        caveat = [f"Rows without validation %: {SEARCH_CAVEAT[0].lower()}{SEARCH_CAVEAT[1:]}"]
    views = [
        _with_teachers(_view(leaderboard, not unconfirmed.all()), teachers or {})
        for leaderboard in leaderboards
    ]
    is_markdown = output_format == "markdown"
    render = partial(render_columns, markdown=True) if is_markdown else _fit_to_terminal
    wrap = str if is_markdown else _wrap_line
    lines = [
        "\n".join(wrap(printable(line)) for line in part) for part in (answers, [*caveat, *notes])
    ]
    tables = [render(view) for view in (*ship_views, *views)]
    return "\n\n".join(filter(None, [lines[0], *tables, lines[1]])) + "\n"


def render_table(table: pd.DataFrame, output_format: str) -> str:
    """Return all columns of any table as text.

    Args:
        table: the table.
        output_format: ``table``, ``markdown``, ``csv`` or ``json``.
    """
    if output_format == "csv":
        return to_csv(table)
    if output_format == "json":
        return f"{json.dumps(to_records(table), indent=2)}\n"
    texts = {name: [_format_value(value) for value in table[name]] for name in table}
    return render_columns(texts, output_format == "markdown") + "\n"


def _view(leaderboard: pd.DataFrame, confirmed: bool) -> dict[str, list[str]]:
    seconds = leaderboard["search_device_seconds"] + leaderboard["confirm_device_seconds"]
    hidden = {n for n in ("trials_diverged", "trials_crashed") if not leaderboard[n].any()}
    if (leaderboard["status"] == "ok").all():
        hidden.add("status")
    hidden |= redundant_columns(leaderboard)
    names = CONFIRM_COLUMNS if confirmed else SEARCH_COLUMNS
    shown = (name for name in names if name not in hidden)
    return LEADERBOARD_VIEW.to_texts(leaderboard.assign(device_hours=seconds / 3600), *shown)


def _with_teachers(
    view: dict[str, list[str]], teachers: Mapping[str, TeacherSummary]
) -> dict[str, list[str]]:
    """Return a view with a last row for the teacher of each of its sweeps."""
    names = dict.fromkeys(view["sweep"]) if "sweep" in view else teachers
    for name, teacher in ((name, teachers[name]) for name in names if name in teachers):
        columns = {
            f"test_{teacher.metric}_percent": teacher.test_accuracy,
            "validation_accuracy_percent": teacher.validation_accuracy,
        }
        if LEADERBOARD_VIEW.heading("validation_accuracy_percent") not in view:
            columns["search_best_percent"] = teacher.validation_accuracy
        known = {key: share for key, share in columns.items() if share is not None}
        row = {LEADERBOARD_VIEW.heading(key): f"{100 * share:.2f}" for key, share in known.items()}
        row |= {"sweep": name, "model": teacher.model, "method": "(teacher)"}
        for heading, texts in view.items():
            texts.append(row.get(heading, ""))
    return view


def _line_width() -> float:
    """Return the width of the terminal; infinite without one."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else math.inf


def _fit_to_terminal(view: Mapping[str, Sequence[str]]) -> str:
    """Return a table; if it is too wide for the terminal, with its settings below it."""
    text = render_columns(view)
    if max(map(len, text.splitlines())) <= _line_width():
        return text
    if "settings" not in view:
        return render_columns(view, width=_line_width())
    rows = zip(view["method"], view["model"], view["settings"], strict=True)
    settings = (f"{method} on {model}: {values}" for method, model, values in rows if values)
    lines = [_wrap_line(printable(line), "    ") for line in settings]
    without_settings = {heading: view[heading] for heading in view if heading != "settings"}
    return "\n".join([render_columns(without_settings, width=_line_width()), "", *lines])


def _wrap_line(line: str, indent: str = "") -> str:
    unbroken: Any = {"break_long_words": False, "break_on_hyphens": False}
    width = min(_line_width(), len(line) + 1)
    return textwrap.fill(line, int(width), subsequent_indent=indent, **unbroken)


def _format_value(value: Any) -> str:
    if pd.isna(value):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"
    return str(value)


def render_columns(
    columns: Mapping[str, Sequence[str]], markdown: bool = False, width: float = math.inf
) -> str:
    """Return columns of texts as a table.

    Args:
        columns: texts, which may be hostile, by heading.
        markdown: as Markdown, whose rows are never wrapped.
        width: number of characters in a line.
    """
    safe = {heading: [printable(text) for text in texts] for heading, texts in columns.items()}
    if markdown:
        return _render_markdown(safe)
    table = RichTable(box=box.SIMPLE_HEAD)
    if width < math.inf:
        table.collapse_padding, table.pad_edge = True, False
    for heading in safe:
        is_text = heading in _TEXT_HEADINGS
        justify: Any = "left" if is_text else "right"
        table.add_column(escape(heading), justify=justify, no_wrap=is_text, overflow="fold")
    for row in zip(*safe.values(), strict=True):
        table.add_row(*map(escape, row))
    full_width = 2 + sum(3 + max(map(cell_len, (h, *texts))) for h, texts in safe.items())
    out = io.StringIO()
    Console(file=out, width=int(min(width, full_width))).print(table)
    lines = (line.rstrip() for line in out.getvalue().splitlines())
    return "\n".join(line for line in lines if line)


def _render_markdown(columns: Mapping[str, Sequence[str]]) -> str:
    """Return a table with one line per row."""
    padded = []
    for heading, texts in columns.items():
        cells = [text.replace("|", "\\|") for text in (heading, *texts)]
        width, is_text = max(3, *map(cell_len, cells)), heading in _TEXT_HEADINGS
        padding = [" " * (width - cell_len(cell)) for cell in cells]
        rule = "-" * width if is_text else "-" * (width - 1) + ":"
        aligned = [c + p if is_text else p + c for c, p in zip(cells, padding, strict=True)]
        padded.append([aligned[0], rule, *aligned[1:]])
    return "\n".join(f"| {' | '.join(row)} |" for row in zip(*padded, strict=True))


def to_csv(table: pd.DataFrame) -> str:
    """Return a table as CSV; text that may be a formula gets an apostrophe."""
    escaped = table.rename(columns=_escape_formula)
    for column in escaped.columns:
        if not pd.api.types.is_numeric_dtype(escaped[column]):
            escaped[column] = [_escape_formula(value) for value in escaped[column]]
    return str(escaped.to_csv(index=False))


def to_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table for JSON; a ``configuration`` is an object."""
    rows: list[dict[str, Any]] = json.loads(table.to_json(orient="records", double_precision=15))
    for row in rows:
        if row.get("configuration") is not None:
            row["configuration"] = json.loads(row["configuration"])
    return rows


def _escape_formula(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return f"'{printable(value)}" if value.startswith(("=", "+", "-", "@")) else printable(value)
