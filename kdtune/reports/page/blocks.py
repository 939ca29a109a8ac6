"""What a section of a report is made of, unrendered: words, tables of texts, figures, code."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Paragraph:
    """A sentence or two; ``kind`` is ``lead``, ``text``, ``missing`` or ``sweep``, a heading.

    ``name`` is that of the figure in whose place it stands.
    """

    text: str
    kind: str = "text"
    name: str = ""


@dataclass(frozen=True)
class TableBlock:
    """A table of texts, by heading."""

    caption: str
    columns: Mapping[str, Sequence[str]]
    collapsed: bool = False
    kind: str = "grid"

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The cells, row by row."""
        return list(zip(*self.columns.values(), strict=True))

    @property
    def row_groups(self) -> list[str]:
        """To which group each row belongs; none where rows are not grouped."""
        heading = next((heading for heading in GROUP_COLUMNS if heading in self.columns), None)
        names = list(self.columns[heading]) if heading else []
        return names if len(set(names)) < len(names) else []


@dataclass(frozen=True)
class FigureBlock:
    """A figure; the caption begins with what it shows."""

    name: str
    figure: Figure
    caption: str
    kind: str = "picture"


@dataclass(frozen=True)
class CodeBlock:
    """Text to copy."""

    caption: str
    text: str
    collapsed: bool = False
    kind: str = "code"


Block = Paragraph | TableBlock | FigureBlock | CodeBlock

GROUP_COLUMNS = ("pair", "model", "method")
"""Columns that group the rows of a table, the first that it has."""

LEFT_ALIGNED = (
    "sweep",
    "model",
    "method",
    "status",
    "settings",
    "setting",
    "pair",
    "verdict",
    "in words",
    "unbeaten in",
    "limited by",
)
"""Headings over columns of words."""


def format_each(values: Iterable[Any], format_spec: str) -> list[str]:
    """Values as text, each in this form; nothing where there is none."""
    return ["" if pd.isna(value) else format(value, format_spec) for value in values]


def to_texts(values: Iterable[Any]) -> list[str]:
    """Values as they are; nothing where there is none."""
    return ["" if pd.isna(value) else str(value) for value in values]


def format_setting(value: object) -> str:
    """The value of a setting."""
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.3g}"
    return "" if value is None else str(value)
