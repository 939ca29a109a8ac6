"""Writes the tree of structure.md from the first lines of docstrings: python docs/structure.py."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILE = Path(__file__).with_suffix(".md")
BEGIN, END = "```text\n", "```\n"

FOLDERS = {
    "tests": "tests of each module, in the same tree",
    "docs": "pages, and the programs that write some of them",
    "examples": "notebooks, plug-ins and cluster files to start from",
    "benchmarks": "the programs that measured the figures in these pages",
    "results": "one folder per sweep; git has the reference studies alone",
}


def page() -> str:
    """Return the page with a new tree."""
    text = FILE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    return before + BEGIN + "\n".join(tree()) + "\n" + END + after


def tree() -> Iterator[str]:
    """Yield one line per package and module, indented by its depth."""
    for package in ("kdtune", "search_spaces"):
        yield from _folder(ROOT / package, 0)
    for name, summary in FOLDERS.items():
        yield f"{name + '/':<24}{summary}"


def _folder(folder: Path, depth: int) -> Iterator[str]:
    yield _line(f"{folder.name}/", depth, _summary(folder / "__init__.py"))
    entries = [path for path in folder.iterdir() if not path.name.startswith("_")]
    for path in sorted(entries, key=lambda path: (path.is_dir(), path.name)):
        if path.is_dir() and any(path.glob("*.py")):
            yield from _folder(path, depth + 1)
        elif path.suffix == ".py":
            yield _line(path.name, depth + 1, _summary(path))


def _line(name: str, depth: int, summary: str) -> str:
    return f"{'  ' * depth + name:<24}{summary}".rstrip()


def _summary(module: Path) -> str:
    lines = (ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or "").split("\n\n")
    return " ".join(lines[0].split()).rstrip(".")


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
