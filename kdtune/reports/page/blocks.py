"""Blocks of a report's sections: paragraphs, tables, figures and code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from kdtune.reports.tables.columns import TEXT_HEADINGS


@dataclass(frozen=True)
class Paragraph:
    """Text; `kind` is ``lead``, ``text``, ``missing`` or ``sweep`` (a heading).

    Attributes:
        name: name of the figure that it replaces, if any.
    """

    text: str
    kind: str = "text"
    name: str = ""


@dataclass(frozen=True)
class TableBlock:
    """A table of text, with its columns by heading; `collapsed` if it is folded at first."""

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
        headings = [heading for heading in _GROUP_COLUMNS if heading in self.columns]
        names = list(self.columns[headings[0]]) if headings else []
        return names if len(set(names)) < len(names) else []


@dataclass(frozen=True)
class FigureBlock:
    """A figure; `name` is the stem of its file."""

    name: str
    figure: Figure
    caption: str
    kind: str = "picture"


@dataclass(frozen=True)
class CodeBlock:
    """Code to copy; `collapsed` if it is folded at first."""

    caption: str
    text: str
    collapsed: bool = False
    kind: str = "code"


Block = Paragraph | TableBlock | FigureBlock | CodeBlock

_GROUP_COLUMNS = ("pair", "model", "method")
"""Headings by which the rows of a table are grouped; the first present one is used."""

LEFT_ALIGNED = {"pair", "student", *TEXT_HEADINGS}
"""Headings of columns of text."""
