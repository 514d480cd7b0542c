"""Muon in the Hugging Face Trainer: one argument, checkpoints and resuming included.

    python examples/muon_trainer.py                          # fresh run into ./muon_trainer_output
    python examples/muon_trainer.py --output DIR --resume    # continue from DIR's last checkpoint

Every parameter is routed by what it is, so that embeddings, norms and the output head take AdamW;
the table of routes is printed first. Rate, weight decay and schedule are the Trainer's own.
"""

import argparse

from transformers import PreTrainedModel, Trainer, TrainingArguments

from muon_text import DocumentationText, tiny_llama
from torch_specgd import muon_for_trainer, param_groups


def make_trainer(output: str, *, steps: int = 40, model: PreTrainedModel | None = None) -> Trainer:
    model = tiny_llama() if model is None else model
    arguments = TrainingArguments(
        output_dir=output,
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        weight_decay=0.1,
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
        model=model,
        args=arguments,
        train_dataset=DocumentationText(),
        optimizer_cls_and_kwargs=muon_for_trainer(model, arguments),
    )


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="muon_trainer_output", help="folder for checkpoints")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    args = parser.parse_args()
    trainer = make_trainer(args.output, steps=args.steps)
    print(param_groups(trainer.model))
    trainer.train(resume_from_checkpoint=args.resume)
    print("loss: " + " -> ".join(f"{loss:.3f}" for loss in losses(trainer)))


if __name__ == "__main__":
    main()
