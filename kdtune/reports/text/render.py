"""Tables as text, and the sentences below a leaderboard.

What a search alone has found is never shown without the `CAVEAT`.
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

from kdtune.reports.tables.notes import CAVEAT, with_width
from kdtune.runtime.console import printable

SEARCHED = {
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

RARE = ("trials_diverged", "trials_crashed")
"""Columns that are printed only if something is in them."""

TEXTS = ("sweep", "model", "method", "status", "settings")
"""Headings over columns that are aligned to the left."""

UNLIMITED = 1000
"""Characters of a line that is as long as it takes."""

FORMULA = ("=", "+", "-", "@")
"""What spreadsheets take for the beginning of a formula."""


def render(boards: Sequence[pd.DataFrame], form: str, notes: Iterable[str] = ()) -> str:
    """Print leaderboards.

    Args:
        boards: as `kdtune.reports.tables.several_sweeps.join_sweeps` makes them; `settings` and
            `sweep` are
            printed where they are there.
        form: ``table`` (for a terminal) and ``markdown`` show the main columns of each; ``csv``
            and ``json`` all columns of all in one table, unrounded, and nothing else.
        notes: lines below the tables.
    """
    if form in ("csv", "json"):
        whole = pd.concat(boards, ignore_index=True)
        return render_table(whole.drop(columns="settings", errors="ignore"), form)
    confirmed = any(board["validation_accuracy_percent"].notna().any() for board in boards)
    shown = _confirmed if confirmed else _searched
    lines = [*_caveat(boards, confirmed), *map(printable, notes)]
    if form == "markdown":
        tables = [_text(shown(board), True) for board in boards]
    else:
        tables = [_fitted(shown(board)) for board in boards]
        lines = [_filled(line) for line in lines]
    return "\n\n".join([*tables, "\n".join(lines)]) + "\n"


def render_table(table: pd.DataFrame, form: str) -> str:
    """Print any table, all columns; `form` as in `render`."""
    if form == "csv":
        return to_csv(table)
    if form == "json":
        return table.to_json(orient="records", indent=2, double_precision=15) + "\n"
    return _text(table, form == "markdown", _short) + "\n"


def _width() -> int:
    """Characters of a line: the terminal's, and as many as it takes where there is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else UNLIMITED


def _fitted(board: pd.DataFrame) -> str:
    """A leaderboard that fits the terminal: if it is too wide, with its settings below it."""
    whole = _text(board, False)
    if max(map(len, whole.splitlines())) <= _width() or "settings" not in board:
        return whole
    below = [
        _filled(printable(f"{row.method} on {row.model}: {row.settings}"), "    ")
        for row in board.itertuples()
    ]
    table = _text(board.drop(columns="settings"), False, width=_width())
    return "\n".join([table, "", *below])


def _filled(line: str, indent: str = "") -> str:
    """A line that is broken between words, where the terminal ends."""
    return textwrap.fill(
        line, _width(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _short(value: float) -> str:
    """A number of any size."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"


def _caveat(boards: Sequence[pd.DataFrame], confirmed: bool) -> list[str]:
    if not confirmed:
        return [CAVEAT]
    alone = pd.concat(boards)["validation_accuracy_percent"].isna().any()
    return [f"Rows without validation %: {CAVEAT[0].lower()}{CAVEAT[1:]}"] if alone else []


def _searched(board: pd.DataFrame) -> pd.DataFrame:
    columns = [
        column
        for column in SEARCHED
        if column in board and (column not in RARE or board[column].any())
    ]
    return board[columns].rename(columns=SEARCHED)


def _confirmed(board: pd.DataFrame) -> pd.DataFrame:
    seconds = board["search_device_seconds"] + board["confirm_device_seconds"]
    columns = {
        "sweep": board.get("sweep"),
        "model": board["model"],
        "rank": board["rank"],
        "method": board["method"],
        "status": board["status"] if (board["status"] != "ok").any() else None,
        "test %": with_width(board, "test_accuracy_percent", "test_half_width_points"),
        "over student": with_width(
            board, "gain_over_student_points", "gain_over_student_half_width_points", "+"
        ),
        "validation %": board["validation_accuracy_percent"],
        "search best %": board["search_best_percent"],
        "optimism": board["optimism_gap_points"],
        "seeds": board["seeds_ok"],
        "trials": board["trials_started"],
        "device h": seconds / 3600,
        "settings": board.get("settings"),
    }
    return pd.DataFrame({head: column for head, column in columns.items() if column is not None})


def _text(
    table: pd.DataFrame,
    markdown: bool,
    real: Callable[[float], str] = "{:.2f}".format,
    width: int = UNLIMITED,
) -> str:
    drawn = Table(box=box.MARKDOWN if markdown else box.SIMPLE_HEAD)
    if width < UNLIMITED:
        drawn.collapse_padding, drawn.pad_edge = True, False
    for heading in table:
        words = heading in TEXTS
        drawn.add_column(
            heading, justify="left" if words else "right", no_wrap=words, overflow="fold"
        )
    for row in table.astype(object).itertuples(index=False):
        cells = [
            "" if pd.isna(v) else real(v) if isinstance(v, float) else _plain(str(v)) for v in row
        ]
        drawn.add_row(*(cell.replace("|", "\\|") if markdown else cell for cell in cells))
    out = io.StringIO()
    Console(file=out, width=width).print(drawn)
    lines = (line.rstrip() for line in out.getvalue().splitlines())
    return "\n".join(line for line in lines if line)


def to_csv(table: pd.DataFrame) -> str:
    """A table as CSV in which no text is a formula: what may be one gets an apostrophe."""

    def harmless(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return f"'{printable(value)}" if value.startswith(FORMULA) else printable(value)

    safe = table.rename(columns=harmless)
    for column in safe.columns:
        if not pd.api.types.is_numeric_dtype(safe[column]):
            safe[column] = [harmless(value) for value in safe[column]]
    return safe.to_csv(index=False)


def _plain(text: str) -> str:
    """Text that is shown as it is: no control characters, and no styles of rich's."""
    return escape(printable(text))
