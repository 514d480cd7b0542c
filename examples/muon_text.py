"""Real text and a tiny transformer for the Muon examples: nothing is downloaded."""

from pydoc_data.topics import topics

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

LENGTH = 64


class DocumentationText(Dataset[dict[str, Tensor]]):
    """Python's own language reference, as ASCII bytes in blocks of 64."""

    def __init__(self, blocks: int = 256) -> None:
        text = "\n".join(topics.values()).encode("ascii", "replace")[: blocks * LENGTH]
        self.blocks = torch.tensor(list(text)).view(blocks, LENGTH)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.blocks[index], "labels": self.blocks[index]}


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    """A randomly initialized Llama of 29,000 parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
    )
    return LlamaForCausalLM(config)
