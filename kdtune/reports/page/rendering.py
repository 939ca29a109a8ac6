"""Figures as SVG of a page and as files, and the colours and style of all figures."""

import io
import re
import warnings
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure

from kdtune.config.methods import BUILTIN_METHODS

TEXT_COLOUR, MUTED_COLOUR, GRID_COLOUR, BAND_COLOUR = "#1b1b1b", "#6b6b6b", "#d8d8d8", "#e9e9e9"
OTHER_METHOD_COLOUR = "#cc79a7"
METHOD_STYLES = {name: (info.colour, info.marker) for name, info in BUILTIN_METHODS.items()}
"""Colour and marker of each built-in method; both differ, for readers who see no colours."""

CSS_VARIABLES = {
    TEXT_COLOUR: "ink",
    MUTED_COLOUR: "soft",
    GRID_COLOUR: "grid",
    BAND_COLOUR: "band",
    OTHER_METHOD_COLOUR: "further",
    "#8fbfdc": "stopped",
    **{colour: method for method, (colour, _) in METHOD_STYLES.items()},
}
"""CSS variable for each colour, so that a page can be dark."""

RC_PARAMS: Any = {
    "axes.axisbelow": True, "axes.edgecolor": MUTED_COLOUR, "axes.grid": True,
    "axes.labelcolor": TEXT_COLOUR, "axes.spines.right": False, "axes.spines.top": False,
    "axes.titlelocation": "left", "axes.titlesize": 10,
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9.5,
    "grid.color": GRID_COLOUR, "grid.linewidth": 0.7, "legend.frameon": False,
    "svg.fonttype": "none", "svg.hashsalt": "kdtune",
    "text.color": TEXT_COLOUR, "text.parse_math": False, "text.usetex": False,
    "xtick.color": MUTED_COLOUR, "xtick.labelcolor": TEXT_COLOUR,
    "ytick.color": MUTED_COLOUR, "ytick.labelcolor": TEXT_COLOUR,
}  # fmt: skip
FIGURE_WIDTH_INCHES = 7.2

ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


class ReportFigure(Figure):
    """A figure that a notebook displays; it does not use pyplot, which needs a display."""

    def _repr_png_(self) -> tuple[bytes, dict[str, float]]:
        return render_file(self, "png"), {"width": 100 * FIGURE_WIDTH_INCHES}


def render_svg(figure: Figure, prefix: str) -> str:
    """Render a figure as an SVG element of a page, with CSS variables for colours.

    Args:
        figure: a figure of a report.
        prefix: of all ids; it must differ between the figures of a page.
    """
    root = ElementTree.fromstring(render_file(figure, "svg"))
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{prefix}-{value}")
            elif key.endswith("href"):
                element.set(key, f"#{prefix}-{value.removeprefix('#')}")
            else:
                value = value.replace("url(#", f"url(#{prefix}-")
                value = re.sub(r"(\.\d\d)\d+", r"\1", value)  # hundredths of a point suffice
                element.set(key, re.sub("#[0-9a-f]{6}", _to_css_variable, value))
    return ElementTree.tostring(root, encoding="unicode")


def _to_css_variable(match: re.Match[str]) -> str:
    return f"var(--{CSS_VARIABLES[match[0]]})" if match[0] in CSS_VARIABLES else match[0]


@rc_context(RC_PARAMS)
def render_file(figure: Figure, file_format: str) -> bytes:
    """Render a figure without date and program.

    Args:
        figure: a figure of a report.
        file_format: ``svg`` or ``png``.
    """
    is_svg = file_format == "svg"
    hidden = ("Date", "Creator", "Format", "Type") if is_svg else ("Software",)
    options: Any = {"transparent": True} if is_svg else {"facecolor": "white"}
    options |= {"metadata": dict.fromkeys(hidden), "format": file_format, "dpi": 200}
    out = io.BytesIO()
    with warnings.catch_warnings():  # a browser has more fonts
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure.savefig(out, **options)
    return out.getvalue()
