"""Tables as text, and the sentences below a leaderboard.

What a search alone has found is never shown without the `SEARCH_CAVEAT`.
"""

import io
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdtune.reports.tables.notes import SEARCH_CAVEAT, format_with_half_width
from kdtune.runtime.console import printable

SEARCH_HEADINGS = {
    "sweep": "sweep",
    "model": "model",
    "method": "method",
    "search_best_percent": "best validation %",
    "trials_started": "trials",
    "trials_finished": "finished",
    "trials_stopped": "stopped",
    "trials_diverged": "diverged",
    "trials_crashed": "crashed",
    "search_epochs": "epochs",
    "search_device_seconds": "device s",
    "settings": "settings",
}
"""Columns of the printed leaderboard while nothing is confirmed, and their headings."""

HIDDEN_IF_ZERO = ("trials_diverged", "trials_crashed")
"""Columns that are printed only if something is in them."""

LEFT_ALIGNED_HEADINGS = ("sweep", "model", "method", "status", "settings")
"""Headings over columns that are aligned to the left."""

UNLIMITED_WIDTH = 1000
"""Characters of a line that is as long as it takes."""

FORMULA_PREFIXES = ("=", "+", "-", "@")
"""What spreadsheets take for the beginning of a formula."""


def render_leaderboards(
    leaderboards: Sequence[pd.DataFrame], output_format: str, notes: Iterable[str] = ()
) -> str:
    """Print leaderboards.

    Args:
        leaderboards: as `kdtune.reports.tables.several_sweeps.join_leaderboards` makes them; `settings` and
            `sweep` are
            printed where they are there.
        output_format: ``table`` (for a terminal) and ``markdown`` show the main columns of each; ``csv``
            and ``json`` all columns of all in one table, unrounded, and nothing else.
        notes: lines below the tables.
    """
    if output_format in ("csv", "json"):
        joined = pd.concat(leaderboards, ignore_index=True)
        return render_table(joined.drop(columns="settings", errors="ignore"), output_format)
    confirmed = any(
        leaderboard["validation_accuracy_percent"].notna().any() for leaderboard in leaderboards
    )
    make_view = _confirmed_view if confirmed else _searched_view
    lines = [*_caveat_lines(leaderboards, confirmed), *map(printable, notes)]
    if output_format == "markdown":
        tables = [_format_table(make_view(leaderboard), True) for leaderboard in leaderboards]
    else:
        tables = [_fit_to_terminal(make_view(leaderboard)) for leaderboard in leaderboards]
        lines = [_wrap_line(line) for line in lines]
    return "\n\n".join([*tables, "\n".join(lines)]) + "\n"


def render_table(table: pd.DataFrame, output_format: str) -> str:
    """Print any table, all columns; `output_format` as in `render_leaderboards`."""
    if output_format == "csv":
        return to_csv(table)
    if output_format == "json":
        return table.to_json(orient="records", indent=2, double_precision=15) + "\n"
    return _format_table(table, output_format == "markdown", _format_number) + "\n"


def _line_width() -> int:
    """Characters of a line: the terminal's, and as many as it takes where there is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else UNLIMITED_WIDTH


def _fit_to_terminal(leaderboard: pd.DataFrame) -> str:
    """A leaderboard that fits the terminal: if it is too wide, with its settings below it."""
    text = _format_table(leaderboard, False)
    if max(map(len, text.splitlines())) <= _line_width() or "settings" not in leaderboard:
        return text
    settings_lines = [
        _wrap_line(printable(f"{row.method} on {row.model}: {row.settings}"), "    ")
        for row in leaderboard.itertuples()
    ]
    table = _format_table(leaderboard.drop(columns="settings"), False, width=_line_width())
    return "\n".join([table, "", *settings_lines])


def _wrap_line(line: str, indent: str = "") -> str:
    """A line that is broken between words, where the terminal ends."""
    return textwrap.fill(
        line,
        _line_width(),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _format_number(value: float) -> str:
    """A number of any size."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"


def _caveat_lines(leaderboards: Sequence[pd.DataFrame], confirmed: bool) -> list[str]:
    if not confirmed:
        return [SEARCH_CAVEAT]
    has_unconfirmed = pd.concat(leaderboards)["validation_accuracy_percent"].isna().any()
    return (
        [f"Rows without validation %: {SEARCH_CAVEAT[0].lower()}{SEARCH_CAVEAT[1:]}"]
        if has_unconfirmed
        else []
    )


def _searched_view(leaderboard: pd.DataFrame) -> pd.DataFrame:
    columns = [
        column
        for column in SEARCH_HEADINGS
        if column in leaderboard and (column not in HIDDEN_IF_ZERO or leaderboard[column].any())
    ]
    return leaderboard[columns].rename(columns=SEARCH_HEADINGS)


def _confirmed_view(leaderboard: pd.DataFrame) -> pd.DataFrame:
    seconds = leaderboard["search_device_seconds"] + leaderboard["confirm_device_seconds"]
    columns = {
        "sweep": leaderboard.get("sweep"),
        "model": leaderboard["model"],
        "rank": leaderboard["rank"],
        "method": leaderboard["method"],
        "status": leaderboard["status"] if (leaderboard["status"] != "ok").any() else None,
        "test %": format_with_half_width(
            leaderboard, "test_accuracy_percent", "test_half_width_points"
        ),
        "over student": format_with_half_width(
            leaderboard, "gain_over_student_points", "gain_over_student_half_width_points", "+"
        ),
        "validation %": leaderboard["validation_accuracy_percent"],
        "search best %": leaderboard["search_best_percent"],
        "optimism": leaderboard["optimism_gap_points"],
        "seeds": leaderboard["seeds_ok"],
        "trials": leaderboard["trials_started"],
        "device h": seconds / 3600,
        "settings": leaderboard.get("settings"),
    }
    return pd.DataFrame({head: column for head, column in columns.items() if column is not None})


def _format_table(
    table: pd.DataFrame,
    markdown: bool,
    format_float: Callable[[float], str] = "{:.2f}".format,
    width: int = UNLIMITED_WIDTH,
) -> str:
    rich_table = Table(box=box.MARKDOWN if markdown else box.SIMPLE_HEAD)
    if width < UNLIMITED_WIDTH:
        rich_table.collapse_padding, rich_table.pad_edge = True, False
    for heading in table:
        is_text = heading in LEFT_ALIGNED_HEADINGS
        rich_table.add_column(
            heading, justify="left" if is_text else "right", no_wrap=is_text, overflow="fold"
        )
    for row in table.astype(object).itertuples(index=False):
        cells = [
            ""
            if pd.isna(v)
            else format_float(v)
            if isinstance(v, float)
            else _escape_markup(str(v))
            for v in row
        ]
        rich_table.add_row(*(cell.replace("|", "\\|") if markdown else cell for cell in cells))
    out = io.StringIO()
    Console(file=out, width=width).print(rich_table)
    lines = (line.rstrip() for line in out.getvalue().splitlines())
    return "\n".join(line for line in lines if line)


def to_csv(table: pd.DataFrame) -> str:
    """A table as CSV in which no text is a formula: what may be one gets an apostrophe."""

    def escape_formula(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return f"'{printable(value)}" if value.startswith(FORMULA_PREFIXES) else printable(value)

    escaped = table.rename(columns=escape_formula)
    for column in escaped.columns:
        if not pd.api.types.is_numeric_dtype(escaped[column]):
            escaped[column] = [escape_formula(value) for value in escaped[column]]
    return escaped.to_csv(index=False)


def _escape_markup(text: str) -> str:
    """Text that is shown as it is: no control characters, and no styles of rich's."""
    return escape(printable(text))
