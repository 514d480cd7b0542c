"""The guides: every Python block runs as it stands, for someone with a model and data."""

import re
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import TrainingArguments

from muon_text import DocumentationText, tiny_llama
from optimizers.adapters import with_adapters

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    path.name: blocks
    for path in sorted(DOCS.glob("*.md"))
    if path.name != "frameworks.md"  # test_page.py runs it section by section
    and (blocks := re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
}


class Classifier(lightning.LightningModule):
    """What Lightning trains: a module with its loss and its optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 4)

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def user(block: str, session: dict[str, Any]) -> dict[str, Any]:
    """Return what else a block is given: a model of the kind that it is about, and its data."""
    if "import Trainer" in block:
        args = TrainingArguments(output_dir="out", max_steps=2, report_to="none")
        return {"model": tiny_llama(), "dataset": DocumentationText(8), "args": args}
    if "QKClip" in block:
        return {"model": tiny_llama(), "loader": DataLoader(DocumentationText(8), batch_size=4)}
    if "import lightning" in block:
        return {"model": Classifier()}
    if "wrap(loader" in block and not isinstance(session["loader"], DataLoader):
        return {"loader": everybody()["loader"]}  # another way to wrap the user's own
    return {"model": with_adapters()} if "lora" in block else {}


def everybody() -> dict[str, Any]:
    """Return what every user has: a model, labelled data, and a way to train."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    dataset = TensorDataset(torch.randn(64, 8), torch.randint(4, (64,)))
    loader = DataLoader(dataset, batch_size=8, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, y = dataset.tensors

    def train_one_epoch() -> None:
        nn.functional.cross_entropy(model(x), y).backward()

    return {
        "model": model,
        "dataset": dataset,
        "loader": loader,
        "optimizer": optimizer,
        "epochs": 12,
        "path": "checkpoint",
        "cross_entropy": nn.functional.cross_entropy,
        "train_one_epoch": train_one_epoch,
    }


# Other packages' own deprecations and advice, as in test_page.py.
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")  # torch 2.9's save
@pytest.mark.parametrize("page", PAGES)
def test_blocks_run_as_pasted(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader who pastes a page from top to bottom gets no error."""
    monkeypatch.chdir(tmp_path)
    session = everybody()
    for number, block in enumerate(PAGES[page]):
        special = user(block, session)
        code = compile(block, f"{page}, block {number}", "exec")
        exec(code, session | special if special else session)


def test_commands_of_the_guides_name_files_that_exist() -> None:
    """A command beside a number can be run: its script is there and takes its options."""
    root, named = DOCS.parent, set()
    for page in (*DOCS.glob("*.md"), root / "README.md", root / "CONTRIBUTING.md"):
        commands = re.findall(
            r"python ((?:benchmarks|experiments|examples)/\w+\.py)([^`\n]*)", page.read_text()
        )
        named |= {
            (script, option)
            for script, rest in commands
            for option in re.findall(r"--[a-z-]+", rest) or [""]
        }
    assert len(named) > 30
    for script, option in sorted(named):
        assert option in (root / script).read_text(), f"{script} {option}"
