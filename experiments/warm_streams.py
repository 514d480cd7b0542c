"""Streams of chunks with a net for each, with clean or wrong labels, and three optimizers.

Images arrive for a conv net and an MLP, tweets for a transformer. Wrong labels are a fifth of all,
drawn anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from muon_bed import Block
from prune_bed import WORDS, digits, fashion, relabel, tweets
from torch import Tensor, nn
from warm_bed import conv_net, hard_fashion_mnist, sgd

from torch_specgd import Muon

LENGTH = 16  # words of a text that are read
Data = tuple[Tensor, Tensor]


class Kind(NamedTuple):
    """What arrives, and how long nets train on it.

    Attributes:
        chunks: How many arrive.
        size: Examples in each.
        batch: Examples in a step.
        epochs: Passes over all that has arrived, at most, after each chunk.
        cold_epochs: The same for a net that starts from nothing.
    """

    chunks: int
    size: int
    batch: int
    epochs: int
    cold_epochs: int


KINDS = {
    "MLP": Kind(4, 250, 64, 20, 60),
    "conv net": Kind(3, 200, 64, 20, 60),
    "transformer": Kind(20, 40, 64, 5, 30),
}
JUDGED = 3_000  # test examples at most


class Stream(NamedTuple):
    """Chunks in the order in which they arrive, and the test set."""

    chunks: list[Data]
    test: Data


class TextNet(nn.Module):
    """One transformer block over the words of a text, its mean over words, a linear head."""

    def __init__(self, width: int = 16, heads: int = 2, classes: int = 3) -> None:
        super().__init__()
        # Word 0 fills short texts up.
        self.words = nn.Embedding(WORDS + 1, width, padding_idx=0)
        self.positions = nn.Embedding(LENGTH, width)
        self.block = Block(width, heads)
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, words) to (batch, classes); attention is causal, so fillers are unseen."""
        there = (x > 0).float()[..., None]
        y = self.norm(self.block(self.words(x) + self.positions.weight[: x.shape[1]]))
        return self.head((y * there).sum(1) / there.sum(1).clamp_min(1.0))


def new_net(kind: str) -> nn.Module:
    """A freshly drawn net for a kind of stream."""
    if kind == "conv net":
        return conv_net(True, (8, 8, 16, 16)).to(memory_format=torch.channels_last)
    if kind == "transformer":
        return TextNet()
    return nn.Sequential(
        nn.Flatten(), nn.Linear(196, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip


def adamw(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """AdamW with a decay of 0.01."""
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)


def muon(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Muon for the matrices at a rate that AdamW, which takes the rest, can share."""
    return Muon(model, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")


OPTIMIZERS: dict[str, Callable[[nn.Module, float], torch.optim.Optimizer]] = {
    "SGD": sgd,
    "AdamW": adamw,
    "Muon": muon,
}


@functools.cache
def examples(kind: str) -> Data:
    """All labelled examples of a kind, from which streams are drawn."""
    if kind == "conv net":
        x, y, test_x, test_y = hard_fashion_mnist()
        return torch.cat([x, test_x]), torch.cat([y, test_y])
    if kind == "MLP":
        x, y, test_x, test_y = fashion()
        return torch.cat([x, test_x]), torch.cat([y, test_y])
    if kind == "digits":
        return digits()
    texts, labels = tweets()
    x = torch.zeros(len(texts), LENGTH, dtype=torch.long)
    for row, hashes in enumerate(texts):
        # Pairs of words stand behind the words.
        own = hashes[: (len(hashes) + 1) // 2][:LENGTH]
        x[row, : len(own)] = 1 + torch.tensor(own, dtype=torch.long)
    return x, labels


def stream(kind: str, noisy: bool, seed: int, shape: Kind | None = None) -> Stream:
    """A stream of which the seed decides examples, order and wrong labels."""
    x, y = examples(kind)
    chunks, size = (shape or KINDS[kind])[:2]
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=g)
    seen, held = order[: chunks * size], order[chunks * size :][:JUDGED]
    labels = relabel(y[seen], "redrawn" if noisy else "clean", g)
    return Stream(
        list(zip(x[seen].split(size), labels.split(size), strict=True)), (x[held], y[held])
    )
