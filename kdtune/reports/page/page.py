"""The report of one or more sweeps: a single HTML file that loads nothing from the network."""

import base64
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from kdtune.config.methods import BUILTIN_METHODS
from kdtune.errors import UserError
from kdtune.reports.loaded_sweep import LoadedSweep
from kdtune.reports.page.blocks import LEFT_ALIGNED, Block, FigureBlock, Paragraph
from kdtune.reports.page.rendering import render_file, render_svg
from kdtune.reports.page.sections import SECTIONS
from kdtune.reports.page.sections.leaderboard import leaderboard_section
from kdtune.reports.page.sections.ship import ship_section
from kdtune.reports.page.sections.verdict import verdict_question, verdict_section
from kdtune.reports.tables.all_tables import comparison_conditions
from kdtune.reports.tables.several_sweeps import explain_separate_tables, join_leaderboards
from kdtune.reports.tables.ship import NO_LIMITS, ShipLimits
from kdtune.reports.text.render import to_csv
from kdtune.runtime.console import printable
from kdtune.storage.files import atomic_write, write_text

_DOWNLOAD_TABLES = ("leaderboard", "comparison", "ship", "search_curve", "rungs", "settings")
MAX_PAGE_BYTES = 1_000_000  # a page of this size gets no further table to download
_OPEN_SECTIONS = ("ship", "verdict", "leaderboard")  # they are expanded at first


def render_excerpt(sweeps: Sequence[LoadedSweep], sections: Sequence[dict[str, Any]]) -> str:
    """Render both answers and the leaderboard for a notebook, without scripts or fixed colours.

    Args:
        sweeps: the sweeps.
        sections: result of `build_sections` for these sweeps.
    """
    blocks = [block for section in sections[:3] for block in section["blocks"]]
    blocks = [block for block in blocks if not isinstance(block, FigureBlock)]
    lines = [sweep.summary() for sweep in sweeps]
    return _jinja_environment().get_template("notebook.html").render(lines=lines, blocks=blocks)


def write_report(
    folders: Sequence[Path],
    page_path: Path | None,
    figures_folder: Path | None,
    limits: ShipLimits = NO_LIMITS,
) -> Path:
    """Write the page, and its figures as files; return the file of the page.

    Args:
        folders: folders of the sweeps.
        page_path: file of the page; ``report.html`` in the first folder if None.
        figures_folder: folder for the figures as SVG and PNG; None writes none.
        limits: what the student to ship may cost.
    """
    sweeps = [LoadedSweep(path, limits) for path in folders]
    sections = build_sections(sweeps)
    page_path = page_path or sweeps[0].folder.report_path
    try:
        write_text(page_path, _render_page(sweeps, sections))
        for block, suffix in product(_figure_blocks(sections), ("svg", "png")):
            if figures_folder is not None:
                with atomic_write(figures_folder / f"{block.name}.{suffix}") as temporary:
                    temporary.write_bytes(render_file(block.figure, suffix))
    except OSError as error:
        raise UserError(f"The report cannot be written: {error.strerror}.") from None
    return page_path


def _render_page(sweeps: Sequence[LoadedSweep], sections: list[dict[str, Any]]) -> str:
    facts = [sweep.header_facts() for sweep in sweeps]
    pictures = enumerate(_figure_blocks(sections))
    values = {
        "title": ", ".join(sweep.path.name for sweep in sweeps),
        "sweeps": [sweep.name for sweep in sweeps],
        "facts": {key: [sweep_facts[key] for sweep_facts in facts] for key in facts[0]},
        "sections": sections,
        "figures": {b.name: Markup(render_svg(b.figure, f"f{i}")) for i, b in pictures},
    }
    template = _jinja_environment().get_template("page.html", globals=values)
    page_without_tables = template.render(downloads=[], left_out=[])
    downloads, left_out = _embed_tables(sweeps, MAX_PAGE_BYTES - len(page_without_tables.encode()))
    return template.render(downloads=downloads, left_out=left_out)


def _figure_blocks(sections: Sequence[dict[str, Any]]) -> list[FigureBlock]:
    blocks = [block for section in sections for block in section["blocks"]]
    return [block for block in blocks if isinstance(block, FigureBlock)]


def _jinja_environment() -> Environment:
    options: Any = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    loader = PackageLoader("kdtune.reports.page", ".")
    environment = Environment(loader=loader, undefined=StrictUndefined, **options)
    environment.filters |= {"printable": printable, "words": _format_inline}
    environment.globals |= {"left": LEFT_ALIGNED, "methods": BUILTIN_METHODS}
    return environment


def build_sections(sweeps: Sequence[LoadedSweep]) -> list[dict[str, Any]]:
    """Return ``anchor``, ``heading``, ``question``, ``open`` and ``blocks`` of each section."""
    conditions = {sweep.name: comparison_conditions(sweep.folder) for sweep in sweeps}
    leaderboards = join_leaderboards({sweep.name: sweep.tables for sweep in sweeps}, conditions)
    leaderboard_blocks: list[Block] = []
    for sweep in sweeps:
        label = f"{sweep.name}: " if len(sweeps) > 1 else ""
        leaderboard_blocks += (Paragraph(f"{label}{note}") for note in sweep.learning_notes())
    leaderboard_blocks += [block for table in leaderboards for block in leaderboard_section(table)]
    leaderboard_blocks += map(Paragraph, explain_separate_tables(conditions))
    verdicts = _blocks_of_sweeps(sweeps, verdict_section)
    question = "How good is each method on each student?"
    ship_question = "Which student, and how sure is that?"
    contents = {
        "ship": ("What to ship", ship_question, _blocks_of_sweeps(sweeps, ship_section)),
        "verdict": ("Verdict", verdict_question(sweeps), verdicts),
        "leaderboard": ("Leaderboard", question, leaderboard_blocks),
    }
    for anchor, (heading, question, build_section) in SECTIONS.items():
        contents[anchor] = heading, question, _blocks_of_sweeps(sweeps, build_section)
    return [
        {"anchor": anchor, "open": anchor in _OPEN_SECTIONS, "heading": f"{number}. {heading}"}
        | {"question": question, "blocks": blocks}
        for number, (anchor, (heading, question, blocks)) in enumerate(contents.items(), start=1)
    ]


def _blocks_of_sweeps(
    sweeps: Sequence[LoadedSweep], build_section: Callable[[LoadedSweep], Iterator[Block]]
) -> list[Block]:
    if len(sweeps) == 1:
        return list(build_section(sweeps[0]))
    blocks: list[Block] = []
    for number, sweep in enumerate(sweeps, start=1):
        blocks.append(Paragraph(sweep.name, "sweep"))
        for block in build_section(sweep):
            if isinstance(block, FigureBlock | Paragraph) and block.name:
                block = replace(block, name=f"{number}-{block.name}")
            blocks.append(block)
    return blocks


def _format_inline(text: str) -> Markup:
    """Return text as HTML: `code` in backticks, and no line break before ± and %."""
    escaped_text = printable(text).replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%")
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(escaped_text))))


def _embed_tables(
    sweeps: Sequence[LoadedSweep], bytes_left: int
) -> tuple[list[tuple[str, str]], list[str]]:
    """Return name and data link of each table that fits, and the names of the others."""
    links, left_out = [], []
    for sweep, table in product(sweeps, _DOWNLOAD_TABLES):
        if table not in sweep.named_tables or sweep.named_tables[table].empty:
            continue
        name = f"{table}.csv" if len(sweeps) == 1 else f"{sweep.path.name}-{table}.csv"
        encoded = base64.b64encode(to_csv(sweep.named_tables[table]).encode()).decode()
        link_bytes = len(encoded) + 2 * len(name) + 100
        if link_bytes > bytes_left:
            left_out.append(name)
        else:
            bytes_left -= link_bytes
            links.append((name, f"data:text/csv;base64,{encoded}"))
    return links, left_out
