"""Docstrings: the first words of all, and `Args:` of public functions with several parameters."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import click

import kdtune

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path
    for folder in ("kdtune", "search_spaces", "benchmarks", "docs", "examples", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
RIDDLES = re.compile(
    r"(Whether|What|Of|As|How|Which|Who|Whom|Whose|Where|When|Why|That|If|The same|See|Likewise)\b"
)
"""First words that say neither what a function does nor what a thing is."""

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(kdtune.__path__, "kdtune.")
    if not module.name.endswith("__main__")
)


def docstrings(file):
    """Yield line and docstring of a module and of all that it defines."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


def test_no_docstring_begins_with_a_riddle():
    riddles = [
        f"{file.relative_to(ROOT)}:{line}: {text}"
        for file in FILES
        for line, text in docstrings(file)
        if RIDDLES.match(text)
    ]
    assert not riddles


def public_functions(module):
    """Yield name, function, docstring of public functions, constructors and methods.

    Methods that override one of a base class, and constructors that take what the constructor of
    the base class takes, are left out: the base class documents them.
    """
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", "") != module.__name__:
            continue
        if isinstance(value, type):
            takes = inspect.signature(value.__init__).parameters
            inherits = takes == inspect.signature(value.__mro__[1].__init__).parameters
            if "__init__" in vars(value) and not inherits and not dataclasses.is_dataclass(value):
                yield name, value.__init__, value.__doc__
            for method_name, method in vars(value).items():
                function = getattr(method, "__func__", method)
                overrides = any(hasattr(base, method_name) for base in value.__mro__[1:])
                if inspect.isfunction(function) and method_name[0] != "_" and not overrides:
                    yield f"{name}.{method_name}", function, function.__doc__
        elif inspect.isfunction(value) and not isinstance(value, click.Command):
            yield name, value, value.__doc__


def undescribed_parameters(function, docstring):
    """Return the parameters, of at least two, that the section `Args:` leaves out."""
    parameters = inspect.signature(inspect.unwrap(function)).parameters
    names = [name for name in parameters if name not in ("self", "cls")]
    _, _, section = (docstring or "").partition("Args:\n")
    missing = [name for name in names if not re.search(rf"^ +\**{name}:", section, re.M)]
    return missing if len(names) > 1 else []


def test_public_functions_describe_their_parameters():
    undescribed = {
        f"{module}.{name}": missing
        for module in MODULES
        for name, function, docstring in public_functions(importlib.import_module(module))
        if (missing := undescribed_parameters(function, docstring))
    }
    assert not undescribed
