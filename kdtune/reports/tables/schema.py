"""A table's schema: its columns, with the format, meaning and heading of each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

TEXT, FLAG, ANY = "text", "flag", "any"
"""Formats of columns without numbers; a column with the format `ANY` mixes types."""


# Before pandas 3, "str" makes text of values that are missing.
_TEXT_DTYPE = "str" if int(pd.__version__.partition(".")[0]) >= 3 else "object"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        format: format specification of a number, or `TEXT`, `FLAG` or `ANY`.
        meaning: text for the reference.
        heading: text where the column is shown; empty if it is not shown.
        half_width: column with the half width of the value's 95 % interval.
    """

    name: str
    format: str
    meaning: str
    heading: str = ""
    half_width: str = ""

    @property
    def dtype(self) -> str:
        """The pandas type of the values."""
        types = {TEXT: _TEXT_DTYPE, FLAG: "boolean", ANY: "object"}
        return types.get(self.format, "Int64" if self.format.endswith("d") else "float64")

    def to_texts(self, table: pd.DataFrame) -> list[str]:
        """Return the values as text, with their half widths where they are known."""
        widths = table[self.half_width] if self.half_width else [None] * len(table)
        return [
            self._to_text(value) + ("" if pd.isna(width) else f" ± {width:.2f}")
            for value, width in zip(table[self.name], widths, strict=True)
        ]

    def _to_text(self, value: Any) -> str:
        if pd.isna(value):
            return ""
        if self.format == FLAG:
            return "yes" if value else "no"
        return str(value) if self.format in (TEXT, ANY) else format(value, self.format)


class Table:
    """The columns of a table, in their order.

    Args:
        row: sentence on the rows, for the reference.
        columns: all columns.
    """

    def __init__(self, row: str, *columns: Column):
        self.row, self.columns = row, columns
        self.names = [column.name for column in columns]

    def select(self, *names: str) -> list[Column]:
        """Return columns by their names."""
        return [self.columns[self.names.index(name)] for name in names]

    def heading(self, name: str) -> str:
        """Return the heading of a column."""
        return self.select(name)[0].heading

    def make_frame(self, rows: Iterable[Any] | Mapping[str, Any] = ()) -> pd.DataFrame:
        """Return rows (dictionaries or tuples), or arrays by column, as a typed DataFrame."""
        data = rows if isinstance(rows, Mapping) else list(rows)
        return self.cast(pd.DataFrame(data, columns=self.names))

    def cast(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return a table whose columns have their types; it may have further columns."""
        return table.astype({column.name: column.dtype for column in self.columns})

    def to_texts(self, table: pd.DataFrame, *names: str) -> dict[str, list[str]]:
        """Return columns as text, by heading.

        Args:
            table: the values.
            names: names of the columns; those that the table lacks are left out.
        """
        shown = self.select(*(name for name in names if name in table))
        return {column.heading: column.to_texts(table) for column in shown}
