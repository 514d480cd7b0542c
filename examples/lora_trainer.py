"""LoRA with SpecGD in the Hugging Face trainer: rates per factor, a report, spectra on the way.

    pip install "torch-specgd[integrations,plot]"
    python examples/lora_trainer.py

A two-layer Llama with random weights learns the bytes of Python's manual, so that nothing is
downloaded; put your own model in its place.
"""

from pydoc_data.topics import topics
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from torch_specgd import SpecGD, SpectrumTracker, lora_param_groups, lora_report

torch.manual_seed(0)
model = get_peft_model(
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64,
        )
    ),
    LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]),
)  # fmt: skip

text = torch.tensor(list("\n".join(topics.values()).encode())[: 64 * 800]).reshape(-1, 64)
data = [{"input_ids": row, "labels": row} for row in text]

# Each factor has a learning rate of its own; 0.01 is the spectral norm of one step.
groups = lora_param_groups(model, lr_b=0.01, lr_a=0.01)
tracker = SpectrumTracker(model, every=10)

with TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, max_steps=60, per_device_train_batch_size=8, use_cpu=True, report_to=[],
        save_strategy="no", logging_steps=20,
    )  # fmt: skip
    trainer = Trainer(
        model,
        arguments,
        train_dataset=data,
        optimizer_cls_and_kwargs=(SpecGD, {"params": groups, "momentum": 0.95}),
        callbacks=[tracker.hf_callback()],
    )
    trainer.create_optimizer()
    print(lora_report(model, trainer.optimizer))
    trainer.train()

for name in tracker.names():
    _, ratio = tracker.history(name, "sigma_ratio")
    _, rank = tracker.history(name, "stable_rank")
    print(f"{name}: sigma_r / sigma_1 = {ratio[-1]:.2f}, stable rank {rank[-1]:.1f} of 8")
