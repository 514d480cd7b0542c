"""Muon in the Hugging Face Trainer: one argument, checkpoints and resuming included.

    python examples/muon_trainer.py                          # fresh run into ./muon_trainer_output
    python examples/muon_trainer.py --output DIR --resume    # continue from DIR's last checkpoint

The Trainer makes two groups of unnamed parameters, with and without weight decay; Muon routes
each parameter in them by its shape. ``--route`` routes by name and module type instead, so that
embeddings and the output head take AdamW.
"""

import argparse
from typing import Any

from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from muon_text import DocumentationText, tiny_llama
from torch_specgd import Muon, param_groups

# The rate stands here: Trainer does not hand its learning_rate to a class that you bring.
SETTINGS = {"lr": 1e-2, "adjust_lr_fn": "match_rms_adamw"}


class RoutedMuon:
    """A factory, which Trainer calls with the model: no Optimizer class, so it sees the names."""

    def __call__(self, model: nn.Module, **settings: Any) -> Muon:
        """Routes the model's parameters and shows where each goes."""
        groups = param_groups(model, adamw={"weight_decay": 0.0})
        print(groups)
        return Muon(groups, **settings)


def make_trainer(
    output: str, *, steps: int = 40, route: bool = False, model: PreTrainedModel | None = None
) -> Trainer:
    arguments = TrainingArguments(
        output_dir=output,
        max_steps=steps,
        per_device_train_batch_size=16,
        weight_decay=0.1,  # of the Trainer's first group; the second has 0
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=4,
        logging_steps=steps // 4,
        save_steps=steps // 2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return Trainer(
        model=tiny_llama() if model is None else model,
        args=arguments,
        train_dataset=DocumentationText(),
        optimizer_cls_and_kwargs=(RoutedMuon if route else Muon, dict(SETTINGS)),
    )


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="muon_trainer_output", help="folder for checkpoints")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--route", action="store_true", help="route by name and module type")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    args = parser.parse_args()
    trainer = make_trainer(args.output, steps=args.steps, route=args.route)
    trainer.train(resume_from_checkpoint=args.resume)
    print("loss: " + " -> ".join(f"{loss:.3f}" for loss in losses(trainer)))


if __name__ == "__main__":
    main()
