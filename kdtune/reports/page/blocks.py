"""What a section of a report is made of, unrendered: words, tables of texts, figures, code."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Words:
    """A sentence or two; ``kind`` is ``lead``, ``text``, ``missing`` or ``sweep``, a heading.

    ``name`` is that of the figure in whose place it stands.
    """

    text: str
    kind: str = "text"
    name: str = ""


@dataclass(frozen=True)
class Grid:
    """A table of texts, by heading."""

    caption: str
    columns: dict[str, Sequence[str]]
    folded: bool = False
    kind: str = "grid"

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The cells, row by row."""
        return list(zip(*self.columns.values(), strict=True))

    @property
    def groups(self) -> list[str]:
        """To which group each row belongs; none where rows are not grouped."""
        head = next((head for head in GROUPED if head in self.columns), None)
        names = list(self.columns[head]) if head else []
        return names if len(set(names)) < len(names) else []


@dataclass(frozen=True)
class Picture:
    """A figure; the caption begins with what it shows."""

    name: str
    figure: Figure
    caption: str
    kind: str = "picture"


@dataclass(frozen=True)
class Code:
    """Text to copy."""

    caption: str
    text: str
    folded: bool = False
    kind: str = "code"


Block = Words | Grid | Picture | Code

GROUPED = ("pair", "model", "method")
"""Columns that group the rows of a table, the first that it has."""

LEFT = (
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


def each(values: Iterable, form: str) -> list[str]:
    """Values as text, each in this form; nothing where there is none."""
    return ["" if pd.isna(value) else format(value, form) for value in values]


def texts(values: Iterable) -> list[str]:
    """Values as they are; nothing where there is none."""
    return ["" if pd.isna(value) else str(value) for value in values]


def in_short(value: object) -> str:
    """The value of a setting."""
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.3g}"
    return "" if value is None else str(value)
