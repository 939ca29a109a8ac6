"""Blocks of a report's sections: paragraphs, tables, figures and code."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from kdtune.reports.tables.columns import TEXT_HEADINGS


@dataclass(frozen=True)
class Paragraph:
    """Text; `kind` is ``lead``, ``text``, ``missing`` or ``sweep`` (a heading).

    Attributes:
        text: one or two sentences.
        kind: style of the text.
        name: name of the figure that it replaces, if any.
    """

    text: str
    kind: str = "text"
    name: str = ""


@dataclass(frozen=True)
class TableBlock:
    """A table of text.

    Attributes:
        caption: text above the table.
        columns: cells of each column by heading.
        collapsed: True if it is folded at first.
        kind: name of its template.
    """

    caption: str
    columns: Mapping[str, Sequence[str]]
    collapsed: bool = False
    kind: str = "grid"

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The rows of cells."""
        return list(zip(*self.columns.values(), strict=True))

    @property
    def row_groups(self) -> list[str]:
        """The group of each row; empty if rows are not grouped."""
        heading = next((heading for heading in GROUP_COLUMNS if heading in self.columns), None)
        names = list(self.columns[heading]) if heading else []
        return names if len(set(names)) < len(names) else []


@dataclass(frozen=True)
class FigureBlock:
    """A figure.

    Attributes:
        name: stem of its file.
        figure: the figure.
        caption: text below it, which starts with the result that it shows.
        kind: name of its template.
    """

    name: str
    figure: Figure
    caption: str
    kind: str = "picture"


@dataclass(frozen=True)
class CodeBlock:
    """Code to copy.

    Attributes:
        caption: text above it.
        text: the code.
        collapsed: True if it is folded at first.
        kind: name of its template.
    """

    caption: str
    text: str
    collapsed: bool = False
    kind: str = "code"


Block = Paragraph | TableBlock | FigureBlock | CodeBlock

GROUP_COLUMNS = ("pair", "model", "method")
"""Headings by which the rows of a table are grouped; the first present one is used."""

LEFT_ALIGNED = {"pair", "unbeaten in", *TEXT_HEADINGS}
"""Headings of columns of text."""


def format_each(values: Iterable[Any], format_spec: str) -> list[str]:
    """Format values; missing ones are empty.

    Args:
        values: numbers, or None or NaN.
        format_spec: format specification, as ``.2f``.
    """
    return ["" if pd.isna(value) else format(value, format_spec) for value in values]


def to_texts(values: Iterable[Any]) -> list[str]:
    """Convert values to text; missing ones are empty."""
    return ["" if pd.isna(value) else str(value) for value in values]


def format_setting(value: object) -> str:
    """Return the value of a setting as text."""
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.3g}"
    return "" if value is None else str(value)
