"""Muon under Accelerate: prepared, stepped and saved like any optimizer of torch.

python examples/muon_accelerate.py
"""

from accelerate import Accelerator
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import DataLoader

from muon_text import DocumentationText, tiny_llama
from torch_specgd import Muon


def train(accelerator: Accelerator, *, steps: int = 48) -> list[float]:
    model = tiny_llama()
    optimizer = Muon(model, lr=1e-2, adjust_lr_fn="match_rms_adamw")
    scheduler = LinearLR(optimizer, start_factor=0.2, total_iters=8)
    loader = DataLoader(DocumentationText(), batch_size=16, shuffle=True)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    losses: list[float] = []
    while len(losses) < steps:
        for batch in loader:
            optimizer.zero_grad()
            loss = model(**batch).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
    return losses[:steps]


def main() -> None:
    losses = train(Accelerator(cpu=True))
    print(f"loss: {sum(losses[:8]) / 8:.3f} -> {sum(losses[-8:]) / 8:.3f}")


if __name__ == "__main__":
    main()
