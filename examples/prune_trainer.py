"""Prune under the Hugging Face Trainer: a column with the row number, a sampler, one method.

pip install transformers accelerate
python examples/prune_trainer.py
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from data_prune import DualScoreSampler


class PruningTrainer(Trainer):
    """A Trainer whose train set has a column "row"; records, then trains on the kept part."""

    def __init__(self, *args: Any, prune_ratio: float, sampler_options: dict, **kw: Any) -> None:
        super().__init__(*args, **kw)
        # Columns that the model does not take are dropped otherwise, "row" among them.
        self.args.remove_unused_columns = False
        self.scores = DualScoreSampler(self.train_dataset, prune_ratio, **sampler_options)

    def _get_train_sampler(self, *_: Any) -> Sampler[int]:
        return self.scores

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **kw: Any
    ) -> Any:
        """The usual loss; takes the row numbers off and credits the logits to them."""
        row = inputs.pop("row", None)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kw)
        if row is not None and model.training:
            self.scores.update(row, outputs.logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss


def sentences(n: int = 64) -> Dataset:
    """Four-token sentences of two classes, with their row numbers."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    tokens = torch.randint(5, 20, (n, 4), generator=g) + 20 * labels[:, None]
    return Dataset.from_dict(
        {"input_ids": tokens.tolist(), "labels": labels.tolist(), "row": list(range(n))}
    ).with_format("torch")


def tiny_bert() -> BertForSequenceClassification:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=8, num_labels=2,
        )
    )  # fmt: skip


def train(model: nn.Module, data: Dataset, epochs: int = 6) -> PruningTrainer:
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=16,
            learning_rate=1e-3,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = PruningTrainer(
            model=model,
            args=arguments,
            train_dataset=data,
            prune_ratio=0.5,
            sampler_options={"score_epochs": 4, "window": 3},
        )
        trainer.train()
    return trainer


if __name__ == "__main__":
    torch.manual_seed(0)
    result = train(tiny_bert(), sentences())
    print(f"kept {len(result.scores.kept)} of {len(result.scores.table)} sentences")
