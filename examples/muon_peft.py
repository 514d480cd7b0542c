"""Muon on LoRA adapters of a PEFT model, each of the two factors at a rate of its own.

    python examples/muon_peft.py

A tiny Llama is trained on the first half of Python's language reference; then it is frozen, and
LoRA adapters learn the second half.
"""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Subset

from muon_text import DocumentationText, tiny_llama
from torch_specgd import Muon, lora_param_groups, lora_report


def fit(model: nn.Module, optimizer: Optimizer, data: Subset, steps: int) -> list[float]:
    losses: list[float] = []
    generator = torch.Generator().manual_seed(0)
    while len(losses) < steps:
        for batch in DataLoader(data, batch_size=16, shuffle=True, generator=generator):
            optimizer.zero_grad()
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses[:steps]


def adapt(*, base_steps: int = 40, steps: int = 32) -> tuple[nn.Module, Muon, list[float]]:
    text = DocumentationText()
    half = len(text) // 2
    base = tiny_llama()
    optimizer = Muon(base, lr=1e-2, adjust_lr_fn="match_rms_adamw")
    fit(base, optimizer, Subset(text, range(half)), base_steps)

    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    groups = lora_param_groups(model, lr_b=0.05, lr_a=0.01, weight_decay=0.0)
    optimizer = Muon(groups)
    return model, optimizer, fit(model, optimizer, Subset(text, range(half, 2 * half)), steps)


def main() -> None:
    model, optimizer, losses = adapt()
    print(lora_report(model, optimizer))
    print(f"loss: {sum(losses[:4]) / 4:.3f} -> {sum(losses[-4:]) / 4:.3f}")


if __name__ == "__main__":
    main()
