"""Tiny models with PEFT's adapters, for tests of the optimizers and of trainers."""

from typing import Any

import pytest
import torch
from torch import nn

# transformers, peft and accelerate use names that the others deprecate: no business of ours.
third_party = pytest.mark.filterwarnings("default")


def tiny_llama() -> nn.Module:
    """A two-layer Llama of 32 channels; nothing is downloaded."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def with_adapters(**options: Any) -> Any:
    """Return it with adapters of rank 4 on queries and values."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], **options)
    return get_peft_model(tiny_llama(), config)
