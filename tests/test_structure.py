"""The arrows between the parts, and what an import may do."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "specgd_common": set(),
    "torch_specgd": {"specgd_common"},
    "triton_kernels": {"specgd_common"},
    "data_prune": {"specgd_common"},
    "warmstart": {"torch_specgd", "specgd_common"},
}
OURS = {"specgd_common", "torch_specgd", "triton_kernels", "data_prune", "warmstart"}
# Read while tests are collected: CPython 3.11 counts the depth of a syntax tree for all threads
# together, and other tests (Ray's) leave threads behind.
TREES = {
    path: ast.parse(path.read_text())
    for part in sorted(OURS)
    for path in (ROOT / part).rglob("*.py")
}


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports; relative imports stay inside their part."""
    found: set[str] = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("part", ALLOWED)
def test_arrows_between_parts(part: str) -> None:
    """Each part works alone: the leaf needs nobody, the kernels and data_prune the leaf alone."""
    for path in (ROOT / part).rglob("*.py"):
        for name in imported(path):
            top = name.split(".")[0]
            assert top not in OURS - {part} - ALLOWED[part], f"{path.name} imports {name}"
            if part == "warmstart" and top == "torch_specgd":
                assert name.startswith("torch_specgd.triton_kernels"), f"{path.name} imports {name}"


def at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from at_run_time(node)


def inside(path: Path) -> set[str]:
    """Files of the same part that a file imports, as dotted names relative to the part."""
    part = path.relative_to(ROOT).parts[0]
    package = list(path.relative_to(ROOT / part).parts[:-1])
    found: set[str] = set()
    for node in at_run_time(TREES[path]):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            base = package[: len(package) - node.level + 1]
            module = [*base, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                for name in (module, [*module, alias.name]):
                    if (ROOT / part).joinpath(*name).with_suffix(".py").is_file():
                        found.add(".".join(name))
    return found


# The stations of each part, in the order in which data flows or what is needed first.
STATIONS = {
    "torch_specgd": ["groups", "distributed", "step", "muon", "specgd"],
    "triton_kernels": ["schedule", "planning", "iterate", "operator", "engine"],
    "data_prune": ["select", "score", "record", "load"],
    "warmstart": ["targets", "direction", "shrink", "methods", "judge"],
}


@pytest.mark.parametrize("part", STATIONS)
def test_files_and_stations_need_each_other_one_way(part: str) -> None:
    """A reader who follows an import never comes back to where they were."""
    root = ROOT / part
    files = {
        ".".join(path.relative_to(root).with_suffix("").parts): inside(path)
        for path in root.rglob("*.py")
        if path != root / "__init__.py"
    }
    list(graphlib.TopologicalSorter(files).static_order())
    folders: dict[str, set[str]] = {}
    for name, needed in files.items():
        folder = name.split(".")[0]
        folders.setdefault(folder, set()).update(other.split(".")[0] for other in needed)
    for folder, others in folders.items():
        others.discard(folder)
    order = list(graphlib.TopologicalSorter(folders).static_order())
    places = [order.index(station) for station in STATIONS[part]]
    assert places == sorted(places)
    assert sum(map(len, folders.values())) > len(folders)  # the arrows are really read


def test_import_has_no_side_effects() -> None:
    """No output, no GPU probing, no triton, no seeds: importing costs what torch costs."""
    code = """
import sys, random, torch, numpy
state = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].copy()
import torch_specgd, torch_specgd.triton_kernels, data_prune, warmstart
assert torch.equal(state[0], torch.get_rng_state()) and state[1] == random.getstate()
assert (state[2] == numpy.random.get_state()[1]).all()
heavy = {"triton", "datasets", "pyarrow", "matplotlib", "sklearn", "ray", "transformers"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert not torch.cuda.is_initialized()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
