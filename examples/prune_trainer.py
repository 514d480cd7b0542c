"""Prune under the Hugging Face Trainer: a column with the row number, a sampler, one method.

Runs on any number of processes, resumes from the checkpoint of any epoch, and its learning-rate
schedule ends on the last step.

    pip install transformers accelerate
    python examples/prune_trainer.py    # or: torchrun --standalone --nproc_per_node 2 ...
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from data_prune import DualScoreSampler

STATE = "pruning.pt"


class PruningTrainer(Trainer):
    """A Trainer whose train set has a column "row"; records, then trains on the kept part.

    Checkpoints are taken at the ends of epochs (``save_strategy="epoch"``).
    """

    def __init__(self, *args: Any, prune_ratio: float, sampler_options: dict, **kw: Any) -> None:
        super().__init__(*args, **kw)
        # Columns that the model does not take are dropped otherwise, "row" among them.
        self.args.remove_unused_columns = False
        # The sampler knows where it is; the Trainer would count by the first epoch's length.
        self.args.ignore_data_skip = True
        if self.args.save_strategy == "steps":
            raise ValueError("a pass cannot be resumed in its middle: save_strategy='epoch'")
        self.scores = DualScoreSampler(self.train_dataset, prune_ratio, **sampler_options)
        self.resumed_from: str | None = None
        self.add_callback(_Checkpoints(self))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The usual schedule over the steps that there really are."""
        args = self.args
        batch = args.train_batch_size * args.world_size
        steps = (
            self.scores.steps_per_epoch(epoch, batch) for epoch in range(int(args.num_train_epochs))
        )
        total = sum(-(-n // args.gradient_accumulation_steps) for n in steps)
        return super().create_scheduler(total, optimizer)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.resumed_from = resume_from_checkpoint

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


class _Checkpoints(TrainerCallback):
    """Saves and loads the position and the recording; ends after the epochs asked for."""

    def __init__(self, trainer: PruningTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Here, not before: the Trainer has counted whole epochs until now."""
        if self.trainer.resumed_from is not None:
            state = torch.load(Path(self.trainer.resumed_from, STATE), weights_only=True)
            self.trainer.scores.load_state_dict(state["sampler"])
            self.trainer.scores.tracker.load_state_dict(state["tracker"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """All ranks merge what they have recorded, so that one of them can save it for all."""
        self.trainer.scores.close_epoch()
        control.should_training_stop |= self.trainer.scores.epoch >= args.num_train_epochs

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Beside the model of the same checkpoint."""
        scores = self.trainer.scores
        content = {"sampler": scores.state_dict(), "tracker": scores.tracker.state_dict()}
        if state.is_world_process_zero:
            torch.save(content, Path(args.output_dir, f"checkpoint-{state.global_step}", STATE))


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
