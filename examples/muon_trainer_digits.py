"""From AdamW to Muon in a Trainer script: one changed line.

    python examples/muon_trainer_digits.py          # as the script was, with the Trainer's AdamW
    python examples/muon_trainer_digits.py --muon   # with Muon: the line below "changed"

Rate, weight decay and schedule stay where they were, in the TrainingArguments.
"""

import argparse
import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from real_data import load
from torch_specgd import muon_for_trainer


class DigitsNet(nn.Module):
    """A small conv net that returns its loss, as Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten()
        )
        self.classifier = nn.Linear(16 * 36, 10)

    def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss and the logits."""
        logits = self.classifier(self.features(pixels))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Digits(Dataset):
    """Scikit-learn's digits as Trainer's examples."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"pixels": self.pixels[i], "labels": self.labels[i]}


def make_trainer(
    muon: bool, output: str, epochs: int = 6, rate: float = 5e-3, seed: int = 0
) -> Trainer:
    torch.manual_seed(seed)
    data = load("digits")
    model = DigitsNet()
    args = TrainingArguments(
        output_dir=output,
        num_train_epochs=epochs,
        per_device_train_batch_size=64,
        learning_rate=rate,
        seed=seed + 42,  # Trainer's own is 42
        weight_decay=0.1,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    changed: dict[str, Any] = {}
    if muon:
        changed = dict(optimizer_cls_and_kwargs=muon_for_trainer(model, args))  # changed
    return Trainer(
        model=model,
        args=args,
        train_dataset=Digits(data.train_x, data.train_y),
        eval_dataset=Digits(data.test_x, data.test_y),
        compute_metrics=accuracy,
        **changed,
    )


def accuracy(prediction: Any) -> dict[str, float]:
    right = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"accuracy": float(right.mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--muon", action="store_true", help="the one changed line")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as output:
        trainer = make_trainer(options.muon, output)
        trainer.train()
        result = trainer.evaluate()
    print(f"loss {result['eval_loss']:.3f}, accuracy {result['eval_accuracy']:.3f}")


if __name__ == "__main__":
    main()
