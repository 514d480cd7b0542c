"""Python's own documentation as bytes, and a transformer small enough for a quick look."""

from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

CONTEXT = 32
WIDTH = 64


class ByteTransformer(nn.Module):
    """Two pre-norm layers that predict the next byte; 116 thousand parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH,
            nhead=4,
            dim_feedforward=4 * WIDTH,
            dropout=0.0,
            norm_first=True,
            batch_first=True,
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 128, bias=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, CONTEXT, 128) for bytes (batch, CONTEXT)."""
        h = self.embedding(x) + self.position.weight
        return self.head(self.norm(self.layers(h, mask=self.mask, is_causal=True)))


def documentation() -> tuple[Tensor, Tensor]:
    """Return bytes for training and, from every tenth topic, 300 blocks held out."""
    names = sorted(topics)

    def stream(chosen: list[str]) -> Tensor:
        text = "\n".join(topics[name] for name in chosen).encode("ascii", "replace")
        return torch.tensor(list(text))

    held_out = stream(names[::10]).unfold(0, CONTEXT + 1, CONTEXT + 1)
    every = len(held_out) // 300
    return stream([name for i, name in enumerate(names) if i % 10]), held_out[::every][:300]


def batch(stream: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return random blocks and the bytes that follow each of their places."""
    start = torch.randint(len(stream) - CONTEXT, (size, 1), generator=generator)
    block = stream[start + torch.arange(CONTEXT + 1)]
    return block[:, :-1], block[:, 1:]


@torch.no_grad()
def next_byte_accuracy(model: nn.Module, blocks: Tensor) -> float:
    """Return the share of bytes that the model's first guess gets right."""
    right = (model(blocks[:, :-1]).argmax(-1) == blocks[:, 1:]).float()
    return float(right.mean())
