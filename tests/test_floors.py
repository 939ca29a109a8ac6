"""A file imports only from floors below its own, and only at its top."""

import ast
from pathlib import Path

import pytest

import kdtune

ROOT = Path(kdtune.__file__).parent
FLOORS = {
    "device": 0,
    "environment": 0,
    "errors": 0,
    "quantities": 0,
    "seeds": 0,
    "process": 1,
    "distributions": 0,
    "files": 1,
    "extras": 1,
    "plugins": 1,
    "flags": 2,
    "cache": 2,
    "config": 2,
    "sweep_config": 3,
    "models": 3,
    "methods": 3,
    "data": 4,
    "checkpoints": 4,
    "log": 3,
    "results": 4,
    "storage": 2,
    "mirror": 5,
    "network": 4,
    "teacher": 5,
    "pretrained": 5,
    "reports": 5,
    "dashboard": 5,
    "costs": 5,
    "formats": 5,
    "export": 6,
    "maps": 5,
    "targets": 5,
    "inputs": 6,
    "training": 6,
    "students": 7,
    "run_files": 7,
    "sweeps": 7,
    "evaluation": 8,
    "run": 8,
    "notebook": 9,
    "at": 10,
    "fitnets": 10,
    "tuning": 10,
    "cli": 11,
    "__main__": 12,
    "__init__": 12,
}
ROOMS_OF_RAY = {"tuning"}
LATE_IMPORTS = {"cli", "flags", "__init__", "sweeps"}  # of a sweep, networks alone need torch
FILES = sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def test_every_room_has_a_floor():
    assert {room(path) for path in FILES} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path):
    own = room(path)
    for node in ast.walk(ast.parse(path.read_text())):
        for name in imported(node):
            parts = name.split(".")
            if parts[0] == "kdtune" and len(parts) > 1 and parts[1] in FLOORS and parts[1] != own:
                assert FLOORS[parts[1]] < FLOORS[own], f"{path} imports {name} from above"
            if parts[0] == "ray":
                assert own in ROOMS_OF_RAY, f"{path} imports {name}"
            if parts[0] in ("torch", "torchvision") or name.startswith("kdtune.models"):
                assert own != "reports", f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_stand_at_the_top(path):
    if room(path) in LATE_IMPORTS:
        return
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef):
            assert not [n for n in ast.walk(function) if imported(n)], f"{path}: {function.name}"


def test_no_cycle_inside_a_room():
    edges = {}
    for path in FILES:
        own = ".".join(("kdtune", *path.relative_to(ROOT).with_suffix("").parts))
        own = own.removesuffix(".__init__")
        names = [n for node in ast.walk(ast.parse(path.read_text())) for n in imported(node)]
        edges[own] = ({n.rsplit(".", 1)[0] for n in names} | set(names)) - {own}
    done: set[str] = set()

    def visit(module, above):
        assert module not in above, f"import cycle: {' -> '.join((*above, module))}"
        if module in done:
            return
        for name in edges.get(module, ()):
            visit(name, (*above, module))
        done.add(module)

    for module in edges:
        visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_and_public_definition_says_what_it_is(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            nested = any(
                isinstance(outer, ast.FunctionDef)
                and node in ast.walk(outer)
                and outer is not node
                for outer in ast.walk(tree)
            )
            private = any(
                isinstance(outer, ast.ClassDef)
                and outer.name.startswith("_")
                and node in outer.body
                for outer in tree.body
            )
            assert nested or private or ast.get_docstring(node), f"{path}: {node.name}"
