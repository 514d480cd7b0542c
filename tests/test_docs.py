"""What the documentation shows runs as pasted: the README's blocks, every docstring's example."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import data_prune
import specgd_common
import torch_specgd
import torch_specgd.triton_kernels
import warmstart

ROOT = Path(__file__).parents[1]
PARTS = (torch_specgd, torch_specgd.triton_kernels, data_prune, warmstart)


def modules() -> list[ModuleType]:
    """Every module of the four parts, but for command lines, which run on import of __main__."""
    names = [
        info.name
        for part in (*PARTS, specgd_common)
        for info in pkgutil.walk_packages(part.__path__, part.__name__ + ".")
        if not info.name.endswith("__main__")
    ]
    return [*PARTS, *(importlib.import_module(name) for name in dict.fromkeys(names))]


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.__name__)
def test_docstring_examples(module: ModuleType) -> None:
    """A user who pastes an example from help() gets what it shows."""
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert result.failed == 0


def test_public_names_have_examples_or_are_described() -> None:
    """Everything that a part exports can be looked up with help()."""
    for part in PARTS:
        for name in part.__all__:
            assert getattr(part, name).__doc__, f"{part.__name__}.{name}"


def test_readme_python_blocks_run_as_pasted() -> None:
    """All Python blocks of the README, from top to bottom, where there is a model and data."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 4
    torch.manual_seed(0)
    dataset = TensorDataset(torch.randn(32, 8), torch.randint(4, (32,)))
    namespace: dict[str, object] = {"__name__": "readme", "model": nn.Linear(8, 4)}
    namespace |= {name: DataLoader(dataset, 8, shuffle=True) for name in ("loader", "new_loader")}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


def test_readme_links_and_files_exist() -> None:
    """No link of the README into the repository is dead."""
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (ROOT / target).exists(), target


def test_readme_names_tests_that_exist() -> None:
    """Every yes of the table of what works together has a test that can be run."""
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) >= 10
    for path, test in named:
        assert f"def {test or 'test_'}" in (ROOT / path).read_text(), f"{path}::{test}"
