"""Writes reference.md and the table in methods.md from the code: python docs/reference.py.

The meaning of a setting stands beside its field, that of a column in
`kdtune.reports.tables.columns`.
"""

from collections.abc import Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kdtune.config.methods import BUILTIN_METHODS
from kdtune.config.sweep import SweepConfig
from kdtune.config.train import METHOD_DEFAULTS, TrainConfig
from kdtune.models import build_model, probe_stage_shapes
from kdtune.reports.tables.columns import TABLES
from kdtune.reports.tables.schema import Table
from kdtune.training.teacher_targets import TeacherTargets

FILE = Path(__file__).with_suffix(".md")
METHODS_FILE = FILE.with_name("methods.md")
TABLE_START, TABLE_END = "<!-- Made by `python docs/reference.py` -->", "<!-- End -->"

KINDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "value"}
RANGES = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}

RUN = """\
The keys of `create_at_config`, of `create_fitnets_config` and of the YAML files of `kdtune train`.
`--setting KEY=VALUE` fixes a setting without a flag of its own for all trials of a sweep."""

SWEEP = """\
The keys of a sweep's YAML file and of `kdtune.run_sweep`. The flags of `kdtune sweep` have the
same names, with dashes. Repeat `--space`, `--plugin`, `--warm-start` and `--tracker` for several
values, and `--setting` for each of `settings`."""

COLUMNS = """\
`kdtune table FOLDER NAME` prints a table; `NAME.csv` in the sweep's folder has the same content.
Accuracies are shares of 1; columns that end in `_percent` or `_points` are hundredths; seconds are
those of the trial's device; `configuration` is JSON."""


def page() -> str:
    """Return the whole page as Markdown."""
    parts = [
        "# Reference",
        "<!-- Made by `python docs/reference.py`; edit the code, not this page. -->",
        "Every [setting of a run](#settings-of-a-run), every [setting of a sweep]"
        "(#settings-of-a-sweep),\nand the [columns of every table](#tables).",
        f"## Settings of a run\n\n{RUN}",
        _settings(TrainConfig),
        f"## Settings of a sweep\n\n{SWEEP}",
        _settings(SweepConfig),
        f"## Tables\n\n{COLUMNS}",
        *(_columns(name, table) for name, table in TABLES.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _columns(name: str, table: Table) -> str:
    rows = [(f"`{column.name}`", column.meaning) for column in table.columns]
    return f"### {name}\n\n{table.row}\n\n{_table(('column', 'meaning'), rows)}"


def _settings(config: type[BaseModel]) -> str:
    rows = [
        (f"`{name}`", _type(field), _default(name, field), str(field.description))
        for name, field in config.model_fields.items()
    ]
    return _table(("setting", "type", "default", "meaning"), rows)


def _type(field: FieldInfo) -> str:
    ranges = [
        f"{sign} {getattr(limit, key):g}"
        for limit in field.metadata
        for key, sign in RANGES.items()
        if hasattr(limit, key)
    ]
    return " ".join([_kind(field.annotation), ", ".join(ranges)]).strip()


def _kind(annotation: Any) -> str:
    inner = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(_kind(kind) for kind in inner if kind is not NoneType)
    if origin is tuple:
        return f"list of {_kind(inner[0])}"
    if origin is dict:
        return f"{_kind(inner[1])} by name"
    return KINDS[annotation]


def _default(name: str, field: FieldInfo) -> str:
    if any(name in defaults for defaults in METHOD_DEFAULTS.values()):
        return "[by method](methods.md#methods)"
    if field.is_required():
        return "*required*"
    value = field.default
    if field.default_factory is not None or value in (None, (), {}):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{','.join(value) if isinstance(value, tuple) else value}`"


def methods_table() -> str:
    """Return the table of built-in methods, as Markdown."""
    targets = TeacherTargets(build_model("ResNet18", 100, 32).eval(), 32)
    student = probe_stage_shapes(build_model("MultiBranchNet", 100, 32), 32)
    rows = []
    for name, info in BUILTIN_METHODS.items():
        config = TrainConfig.parse({"method": name})
        num_bytes = sum(t.bytes_per_image for t in targets.request(config, student).values())
        defaults = f"{config.alpha:g}, {config.beta:.12g}, {config.temperature:g}"
        rows.append(
            (f"`{name}`", info.paper, info.compares, info.loss, defaults, f"{num_bytes:,}")
        )
    heading = ("method", "paper", "what is compared", "own term", "alpha, beta, T", "bytes")
    return _table(heading, rows)


def write_methods(path: Path = METHODS_FILE) -> None:
    """Replace the table of methods in a page."""
    before, _, rest = path.read_text(encoding="utf-8").partition(TABLE_START)
    _, _, after = rest.partition(TABLE_END)
    table = f"{TABLE_START}\n{methods_table()}\n{TABLE_END}"
    path.write_text(f"{before}{table}{after}", encoding="utf-8")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
    write_methods()
