"""PEFT: LoRA adapters train at rates of their own, and the frozen model is left alone."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.data import Subset

import muon_peft
from muon_text import DocumentationText, tiny_llama
from torch_specgd import Muon, lora_param_groups, lora_report

# PEFT 0.21 asks a property that transformers 5.23 has renamed, on every get_peft_model.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def adapted() -> nn.Module:
    torch.manual_seed(0)
    return get_peft_model(tiny_llama(), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))


def test_example_trains(capsys: pytest.CaptureFixture[str]) -> None:
    """The table of rates is printed, and adapters alone lower the loss on new text."""
    muon_peft.main()
    printed = capsys.readouterr().out
    assert printed.count("0.0316") == 14, "sqrt(2 * 0.05 * 0.01) for each of 14 adapters"
    first, last = map(float, printed.rpartition("loss: ")[2].split(" -> "))
    assert last < first - 0.15


def test_all_parameters_of_a_peft_model_may_be_passed() -> None:
    """Muon(model.parameters()) neither moves nor keeps state for what PEFT has frozen."""
    model = adapted()
    optimizer = Muon(model.parameters(), lr=0.01)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    muon_peft.fit(model, optimizer, Subset(DocumentationText(32), range(32)), 2)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name
        assert (p in optimizer.state) == p.requires_grad
    assert len(lora_report(model, optimizer)) == 14


def test_adapter_checkpoint_continues_identically() -> None:
    """The optimizer of a reloaded adapter takes the steps that the first would have taken."""
    data = Subset(DocumentationText(32), range(32))
    model, other = adapted(), adapted()
    optimizer, second = (Muon(lora_param_groups(m, lr_b=0.05, lr_a=0.01)) for m in (model, other))
    muon_peft.fit(model, optimizer, data, 3)
    other.load_state_dict(model.state_dict())
    second.load_state_dict(optimizer.state_dict())
    for m, o in ((model, optimizer), (other, second)):
        muon_peft.fit(m, o, data, 2)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
