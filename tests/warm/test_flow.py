"""The folders of warmstart are stations: each imports those before it, and none after it."""

import ast
import graphlib
from pathlib import Path

import warmstart

ROOT = Path(warmstart.__file__).parent
STATIONS = ("targets", "direction", "shrink", "methods", "loops", "files", "judge")


def imports() -> dict[str, set[str]]:
    """File -> files of this part that it imports, by their dotted names."""
    found: dict[str, set[str]] = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        own = found.setdefault(".".join(parts), set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                package = parts[: len(parts) - node.level]
                own.add(".".join((*package, *(node.module or "").split("."))).strip("."))
    return found


def test_no_circles() -> None:
    """The files read top to bottom: none needs one that needs it."""
    arrows = imports()
    assert "shrink.apply" in arrows["methods.dash"]  # the arrows are really read
    known = {name: {m for m in needs if m in arrows} for name, needs in arrows.items()}
    list(graphlib.TopologicalSorter(known).static_order())


def test_data_flows_one_way() -> None:
    """A model goes in at targets; direction, shrink and methods follow; nothing runs back."""
    for name, needs in imports().items():
        here = name.split(".")[0]
        for other in needs:
            there = other.split(".")[0]
            if here in STATIONS and there in STATIONS:
                assert STATIONS.index(there) <= STATIONS.index(here), f"{name} imports {other}"
