"""One page of a sweep, or of several: a single HTML file that loads nothing from anywhere.

It can be made at any moment of a sweep, and is as old as that moment; it does not renew itself.
Its beginning is what a notebook shows. Of more than half a dozen sweeps together it may become
larger than a megabyte.
"""

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from kdtune.errors import UserError
from kdtune.reports.loaded_sweep import Sweep
from kdtune.reports.page.blocks import LEFT, Block, Picture, Words
from kdtune.reports.page.figures import to_file, to_svg
from kdtune.reports.page.sections import SECTIONS
from kdtune.reports.page.sections.leaderboard import leaderboard
from kdtune.reports.page.sections.verdict import question, verdict
from kdtune.reports.tables.all_tables import about_of
from kdtune.reports.tables.several_sweeps import join_sweeps, kept_apart
from kdtune.reports.text.render import to_csv
from kdtune.runtime.console import printable
from kdtune.storage.files import replacing, write_text

DOWNLOADS = ("leaderboard", "comparison", "search_curve", "rungs", "settings", "models")
"""Tables that the page carries along."""

MOST = 1_000_000
"""Bytes of a page; tables for which no room is left are only in the sweep's folder."""

OPEN = ("verdict", "leaderboard", "ship")
"""Sections that are not folded."""


def report_page(folders: Sequence[Path]) -> str:
    """The page of sweeps; comparable ones stand in one table.

    Raises:
        UserError: a folder is no sweep's, or a log is damaged.
    """
    sweeps = [Sweep(path) for path in folders]
    return _page(sweeps, sections_of(sweeps))


def excerpt(sweeps: Sequence[Sweep], sections: Sequence[dict[str, Any]]) -> str:
    """Verdict and leaderboard as a piece of HTML, without script, in colours of the reader's.

    Args:
        sweeps: which they are about.
        sections: as `sections_of` makes them of these.
    """
    shown = [block for section in sections[:2] for block in section["blocks"]]
    template = _environment().get_template("notebook.html")
    return template.render(
        lines=[sweep.in_short() for sweep in sweeps],
        blocks=[block for block in shown if not isinstance(block, Picture)],
    )


def write_report(folders: Sequence[Path], out: Path | None, figures: Path | None) -> Path:
    """Write the page, and its figures as files.

    Args:
        folders: of the sweeps.
        out: the page's file; if not given, ``report.html`` in the first folder.
        figures: folder for the figures as SVG and PNG; not written if not given.

    Returns:
        The page's file.

    Raises:
        UserError: as `report_page`; or a file cannot be written.
    """
    sweeps = [Sweep(path) for path in folders]
    sections = sections_of(sweeps)
    out = out or sweeps[0].folder.report
    try:
        write_text(out, _page(sweeps, sections))
        if figures is not None:
            for block in (block for section in sections for block in section["blocks"]):
                for form in ("svg", "png") if isinstance(block, Picture) else ():
                    with replacing(figures / f"{block.name}.{form}") as temporary:
                        temporary.write_bytes(to_file(block.figure, form))
    except OSError as error:
        raise UserError(f"The report cannot be written: {error.strerror}.") from None
    return out


def _page(sweeps: Sequence[Sweep], sections: list[dict[str, Any]]) -> str:
    facts = [sweep.facts() for sweep in sweeps]
    pictures = [b for section in sections for b in section["blocks"] if isinstance(b, Picture)]
    template = _environment().get_template(
        "page.html",
        globals={
            "title": ", ".join(sweep.path.name for sweep in sweeps),
            "sweeps": [sweep.name for sweep in sweeps],
            "facts": {key: [of_sweep[key] for of_sweep in facts] for key in facts[0]},
            "sections": sections,
            "figures": {
                picture.name: Markup(to_svg(picture.figure, f"f{number}"))
                for number, picture in enumerate(pictures)
            },
        },
    )
    alone = template.render(downloads=[], left_out=[])
    downloads, left_out = _downloads(sweeps, MOST - len(alone.encode()))
    return template.render(downloads=downloads, left_out=left_out)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("kdtune.reports.page", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"printable": printable, "words": _words}
    environment.globals["left"] = LEFT
    return environment


def sections_of(sweeps: Sequence[Sweep]) -> list[dict[str, Any]]:
    """The page's sections: ``anchor``, ``heading``, ``question``, ``open``, ``blocks``.

    Verdict and leaderboard come first. Of several sweeps the names of figures begin with the
    sweep's number.
    """
    abouts = {sweep.name: about_of(sweep.folder) for sweep in sweeps}
    boards = join_sweeps({sweep.name: sweep.tables for sweep in sweeps}, abouts)
    table = [block for board in boards for block in leaderboard(board)]
    table += map(Words, kept_apart(abouts))
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


def _of_each(sweeps: Sequence[Sweep], make: Callable[[Sweep], list[Block]]) -> list[Block]:
    if len(sweeps) == 1:
        return make(sweeps[0])
    blocks: list[Block] = []
    for number, sweep in enumerate(sweeps, start=1):
        blocks.append(Words(sweep.name, "sweep"))
        for block in make(sweep):
            if isinstance(block, Picture | Words) and block.name:
                block = replace(block, name=f"{number}-{block.name}")
            blocks.append(block)
    return blocks


def _words(text: str) -> Markup:
    """Text for the page: what stands between ` is code, and ± and % stay with their numbers."""
    kept = printable(text).replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%")
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(kept))))


def _downloads(sweeps: Sequence[Sweep], room: int) -> tuple[list[tuple[str, str]], list[str]]:
    """Name and data link of each table that the page has room for; and names of the others."""
    found, left_out = [], []
    for sweep in sweeps:
        for table in DOWNLOADS:
            if table not in sweep.known or sweep.known[table].empty:
                continue
            name = f"{table}.csv" if len(sweeps) == 1 else f"{sweep.path.name}-{table}.csv"
            text = base64.b64encode(to_csv(sweep.known[table]).encode()).decode()
            needed = len(text) + 2 * len(name) + 100
            if needed > room:
                left_out.append(name)
                continue
            room -= needed
            found.append((name, f"data:text/csv;base64,{text}"))
    return found, left_out
