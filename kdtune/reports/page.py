"""One page of a sweep, or of several: a single HTML file that loads nothing from anywhere.

It can be made at any moment of a sweep, and is as old as that moment; it does not renew itself.
"""

import base64
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from kdtune.files import replacing
from kdtune.reports.figures import to_file, to_svg
from kdtune.reports.leaderboard import comparable, join_sweeps
from kdtune.reports.render import printable, to_csv
from kdtune.reports.sections import (
    LEFT,
    SECTIONS,
    Block,
    Picture,
    Sweep,
    Words,
    leaderboard,
    question,
    verdict,
)
from kdtune.reports.sweep import about_of

DOWNLOADS = ("leaderboard", "comparison", "search_curve", "rungs", "settings", "models")
"""Tables that the page carries along."""

MOST_DOWNLOADS = 500_000
"""Bytes of these; what is beyond is only in the sweep's folder."""

GROUPED = ("sweep", "model", "pair", "method")
"""First columns by which the rows of a table are told apart."""

OPEN = ("verdict", "leaderboard", "ship")
"""Sections that are not folded."""


def report_page(folders: Sequence[Path]) -> str:
    """The page of sweeps; comparable ones stand in one table.

    Raises:
        UserError: a folder is no sweep's, or a log is damaged.
    """
    return _page([Sweep(path) for path in folders])


def write_report(folders: Sequence[Path], out: Path | None, figures: Path | None) -> Path:
    """Write the page, and its figures as files.

    Args:
        folders: of the sweeps.
        out: the page's file; if not given, ``report.html`` in the first folder.
        figures: folder for the figures as SVG and PNG; not written if not given.

    Returns:
        The page's file.

    Raises:
        UserError: as `report_page`.
    """
    sweeps = [Sweep(path) for path in folders]
    out = out or sweeps[0].folder.report
    page = _page(sweeps)
    with replacing(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    for i, sweep in enumerate(sweeps if figures else ()):
        first = "" if len(sweeps) == 1 else f"{i + 1}-"
        for block in _blocks_of(sweep):
            if isinstance(block, Picture):
                for form in ("svg", "png"):
                    with replacing(Path(figures or "") / f"{first}{block.name}.{form}") as file:
                        file.write_bytes(to_file(block.figure, form))
    return out


def _blocks_of(sweep: Sweep) -> list[Block]:
    return [b for make in (verdict, *(m for _, _, m in SECTIONS.values())) for b in make(sweep)]


def _page(sweeps: Sequence[Sweep]) -> str:
    source = files("kdtune.reports").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"printable": printable, "words": _words}
    facts = [sweep.facts() for sweep in sweeps]
    return environment.from_string(source).render(
        title=", ".join(sweep.path.name for sweep in sweeps),
        sweeps=[sweep.name for sweep in sweeps],
        facts={key: [of_sweep[key] for of_sweep in facts] for key in facts[0]},
        sections=_sections(sweeps),
        downloads=_downloads(sweeps),
        left=LEFT,
        grouped=GROUPED,
        svg=_svg,
    )


def _sections(sweeps: Sequence[Sweep]) -> list[dict[str, Any]]:
    abouts = {sweep.name: about_of(sweep.folder) for sweep in sweeps}
    boards = join_sweeps({sweep.name: sweep.tables for sweep in sweeps}, abouts)
    table = [block for board in boards for block in leaderboard(board)]
    table += map(Words, comparable(abouts))
    made = {
        "verdict": ("Verdict", question(sweeps), _of_each(sweeps, verdict)),
        "leaderboard": ("Leaderboard", "How good is each method on each student?", table),
        **{
            anchor: (heading, asked, _of_each(sweeps, make))
            for anchor, (heading, asked, make) in SECTIONS.items()
        },
    }
    return [
        {
            "anchor": anchor,
            "heading": f"{number}. {heading}",
            "question": asked,
            "open": anchor in OPEN,
            "blocks": blocks,
        }
        for number, (anchor, (heading, asked, blocks)) in enumerate(made.items(), start=1)
    ]


def _of_each(sweeps: Sequence[Sweep], make: Any) -> list[Block]:
    if len(sweeps) == 1:
        return make(sweeps[0])
    return [b for sweep in sweeps for b in (Words(sweep.name, "sweep"), *make(sweep))]


def _words(text: str) -> Markup:
    """Text for the page, with what stands between ` as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", escape(printable(text))))


def _svg(block: Picture, number: int) -> Markup:
    """The figure for the page; its number makes its ids different from all others'."""
    return Markup(to_svg(block.figure, f"f{number}"))


def _downloads(sweeps: Sequence[Sweep]) -> list[tuple[str, str]]:
    """Name and data link of each table that the page carries along."""
    found, room = [], MOST_DOWNLOADS
    for sweep in sweeps:
        for name in DOWNLOADS:
            if name not in sweep.known or sweep.known[name].empty:
                continue
            text = base64.b64encode(to_csv(sweep.known[name]).encode()).decode()
            if (room := room - len(text)) > 0:
                first = "" if len(sweeps) == 1 else f"{sweep.path.name}-"
                found.append((f"{first}{name}.csv", f"data:text/csv;base64,{text}"))
    return found
