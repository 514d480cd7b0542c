"""Muon in Lightning: one optimizer for the whole model, so automatic optimization stays on.

    python examples/muon_lightning.py

Muon and AdamW as two optimizers would force manual optimization: Lightning steps only one by
itself. Here weights and biases share one optimizer, one scheduler and one checkpoint.
"""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from real_data import load
from torch_specgd import Muon


class DigitsNet(L.LightningModule):
    """A small conv net on scikit-learn's digits."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 64, 10),
        )
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Lightning runs this, and the backward pass, inside Muon's step(closure)."""
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """One optimizer for matrices and vectors, and one scheduler that moves both."""
        optimizer = Muon(self, lr=5e-3, adjust_lr_fn="match_rms_adamw")
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def digits_loader(limit: int = 512) -> DataLoader[tuple[Tensor, ...]]:
    data = load("digits")
    return DataLoader(TensorDataset(data.train_x[:limit], data.train_y[:limit]), batch_size=64)


def make_trainer(epochs: int, **settings: Any) -> L.Trainer:
    return L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def main() -> None:
    model = DigitsNet()
    make_trainer(5, enable_checkpointing=False).fit(model, digits_loader())
    print(f"loss: {sum(model.losses[:8]) / 8:.3f} -> {sum(model.losses[-8:]) / 8:.3f}")


if __name__ == "__main__":
    main()
