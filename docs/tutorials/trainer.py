# %% [markdown]
# # Replace AdamW in a Trainer script
#
# The Hugging Face `Trainer` takes another optimizer by one argument. Everything
# else of the script stays: schedule, checkpoints, resuming. The model here is a
# tiny Llama that reads bytes of Python's own documentation.

# %%
import pydoc_data.topics
import tempfile

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from torch_specgd import muon_for_trainer, param_groups

text = "\n".join(pydoc_data.topics.topics.values()).encode()[:200_000]
windows = (
    torch.frombuffer(bytearray(text), dtype=torch.uint8).long().unfold(0, 64, 64)
)
data = [{"input_ids": window, "labels": window} for window in windows]
train_data, test_data = data[:-96], data[-96:]


def tiny_llama():
    """Return the same small model each time."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
        )
    )


print(f"{len(train_data)} windows of 64 bytes")
print(f"{tiny_llama().num_parameters():,} parameters")

# %% [markdown]
# ## The script as it was

# %%
arguments = TrainingArguments(
    output_dir=tempfile.mkdtemp(),
    max_steps=60,
    per_device_train_batch_size=16,
    per_device_eval_batch_size=32,
    learning_rate=1e-2,
    weight_decay=0.1,
    warmup_steps=5,
    lr_scheduler_type="cosine",
    use_cpu=True,
    report_to="none",
    save_strategy="no",
    logging_strategy="no",
    disable_tqdm=True,
    dataloader_pin_memory=False,
)


def held_out_loss(model, **optimizer):
    """Train for 60 steps; return the loss on bytes that were not seen."""
    data = {"train_dataset": train_data, "eval_dataset": test_data}
    trainer = Trainer(model=model, args=arguments, **data, **optimizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.evaluate()["eval_loss"]


print(f"AdamW: {held_out_loss(tiny_llama()):.3f} nats a byte")

# %% [markdown]
# ## Where each parameter goes
#
# Matrices inside the layers are Muon's. Embeddings, the output head and norms stay
# with AdamW, inside the same optimizer: one schedule and one checkpoint cover the
# model.

# %%
model = tiny_llama()
print(param_groups(model))

# %% [markdown]
# ## One argument more
#
# `muon_for_trainer` reads learning rate, weight decay, betas and epsilon from the
# arguments. They mean what they mean for AdamW: matrices take the rate that
# `Muon.from_adamw` computes from it, everything else takes it as it is.

# %%
muon = held_out_loss(
    model, optimizer_cls_and_kwargs=muon_for_trainer(model, arguments)
)
print(f"Muon:  {muon:.3f} nats a byte")

# %% [markdown]
# One seed and one learning rate are no comparison: tune both before you believe a
# difference. [Muon's results](../muon_results.md) have curves with tuned rates,
# [frameworks](../frameworks.md) the same change for Accelerate, Lightning and
# PEFT, and checkpoints that go on.
