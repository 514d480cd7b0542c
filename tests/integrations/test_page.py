"""docs/frameworks.md: what it shows runs, and what it counts is what is tested."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from muon_text import DocumentationText, tiny_llama
from optimizers import optimizer_info

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "frameworks.md").read_text()
SECTIONS = {
    title: blocks
    for title, _, body in (part.partition("\n") for part in PAGE.split("\n## ")[1:])
    if (blocks := re.findall(r"```python\n(.*?)```", body, re.DOTALL))
}


@pytest.mark.usefixtures("fresh_accelerator")
# As in test_lightning.py and test_peft.py: these packages' own deprecations.
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
# Trainer pins memory by default, and torch says that there is nothing to pin it for.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
@pytest.mark.parametrize("title", SECTIONS)
def test_blocks_run_as_pasted(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each section's blocks, in their order, in a user's file that has a model and data."""
    monkeypatch.chdir(tmp_path)
    model, dataset = tiny_llama(), DocumentationText(32)
    before = [p.detach().clone() for p in model.parameters()]
    user = {"model": model, "dataset": dataset, "loader": DataLoader(dataset, batch_size=16)}
    for block in SECTIONS[title]:
        exec(compile(block, f"frameworks.md, {title}", "exec"), user)
    if title in ("Hugging Face Trainer", "Accelerate", "Lightning"):
        pairs = zip(model.parameters(), before, strict=True)
        assert not any(torch.equal(p, q) for p, q in pairs)


def test_all_five_frameworks_are_shown() -> None:
    """The table's rows, the sections and the examples belong together."""
    assert {"Hugging Face Trainer", "Accelerate", "Lightning"} <= SECTIONS.keys()
    rows = re.findall(r"\]\(\.\./examples/(\w+\.py)\)", PAGE)
    assert len(rows) == len(SECTIONS) == 5
    assert all((ROOT / "examples" / name).exists() for name in rows)


def test_counts_of_torchs_checks_are_true() -> None:
    """The page says how many of torch's checks run."""
    files = (ROOT / "tests" / "optimizers").glob("test_optimizer_info*.py")
    here = set(re.findall(r"^def (test_\w+)", "".join(f.read_text() for f in files), re.MULTILINE))
    checks = set(optimizer_info.TORCH_CHECKS)
    assert f"{len(checks & here)} of {len(checks)}" in PAGE
