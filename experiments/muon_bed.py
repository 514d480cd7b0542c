"""The bed of the Muon experiments: a small transformer on the text of Python's own manual.

The text is `pydoc_data.topics`, which every Python installation carries, so nothing is downloaded.
Tokens are bytes. Whole topics are held out, so no held-out sentence is seen in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

VOCABULARY = 256


@dataclass(frozen=True)
class Setting:
    """What a run trains: the model's size, the text, the batch and the number of steps."""

    steps: int = 400
    batch: int = 8
    context: int = 64
    width: int = 96
    layers: int = 2
    heads: int = 4
    train_bytes: int | None = None  # None: all of the training text
    warmup: float = 0.1


SETTINGS = {
    "plain": Setting(),
    # 64 tokens a batch: every gradient has a rank of at most 64, two thirds of the width.
    "small-batch": Setting(batch=1),
    # 50 passes over a short text: late in training, when little is left to fit.
    "late": Setting(train_bytes=4_096),
}


QUICK = Setting(steps=10, batch=2, context=32, width=32, layers=1)


def read_text(held_out: float = 0.1) -> tuple[Tensor, Tensor]:
    """Returns training and held-out text as int64 tensors of bytes.

    Args:
        held_out: Fraction of the topics that is held out, every k-th in alphabetical order.
    """
    every = round(1 / held_out)
    parts: tuple[list[str], list[str]] = ([], [])
    for i, name in enumerate(sorted(topics)):
        parts[i % every == 0].append(topics[name])
    train, held = (torch.tensor(list("\n\n".join(p).encode()), dtype=torch.int64) for p in parts)
    return train, held


def batches(text: Tensor, setting: Setting, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (inputs, targets), each (batch, context), forever, a pure function of the seed."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(setting.context + 1)
    while True:
        starts = torch.randint(len(text) - setting.context, (setting.batch, 1), generator=generator)
        window = text[starts + offsets]
        yield window[:, :-1], window[:, 1:]


class Block(nn.Module):
    """Pre-norm attention and MLP; q, k and v are matrices of their own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, context, width) to the same."""
        y = self.norm1(x)
        q, k, v = (
            f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        y = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(-2))
        return x + self.down(gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Bytes (batch, context) to logits (batch, context, 256); the head is not tied."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        width = setting.width
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(setting.context, width)
        self.blocks = nn.ModuleList(Block(width, setting.heads) for _ in range(setting.layers))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the next byte."""
        y = self.tokens(x) + self.positions.weight[: x.shape[1]]
        for block in self.blocks:
            y = block(y)
        return self.head(self.norm(y))

    def matrices(self) -> list[nn.Parameter]:
        """The hidden matrices: what Muon takes and the other optimizers may not."""
        return [p for p in self.blocks.parameters() if p.ndim == 2]

    def others(self) -> list[nn.Parameter]:
        """Embeddings, head and norms: always AdamW."""
        chosen = {id(p) for p in self.matrices()}
        return [p for p in self.parameters() if id(p) not in chosen]


def lr_factor(step: int, setting: Setting) -> float:
    """Linear warm-up, then a cosine to zero: the same for every optimizer."""
    warm = setting.warmup * setting.steps
    if step < warm:
        return (step + 1) / warm
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm) / (setting.steps - warm))


@torch.no_grad()
def loss_on(model: Transformer, text: Tensor, context: int, windows: int = 64) -> float:
    """Mean loss in nats a byte over evenly spaced windows of a text."""
    starts = torch.linspace(0, len(text) - context - 1, windows).long()[:, None]
    window = text[starts + torch.arange(context + 1)]
    return float(cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten()))


Optimizers = Callable[[Transformer], list[torch.optim.Optimizer]]


@dataclass
class Point:
    """One evaluation: step, loss on held-out text, loss on training text (nats a byte)."""

    step: int
    held_out: float
    train: float


def train(
    setting: Setting,
    optimizers: Optimizers,
    seed: int,
    *,
    points: int = 10,
    watch: Callable[[int, Transformer, list[torch.optim.Optimizer]], None] | None = None,
) -> list[Point]:
    """Trains one model.

    Args:
        setting: What to train.
        optimizers: Makes the optimizers of a model; all follow the same schedule.
        seed: Decides the model's first weights and the batches, the same for every optimizer.
        points: How many evaluations, the last after the last step.
        watch: Called after every step with (step, model, optimizers).

    Returns:
        The evaluations.
    """
    text, held = read_text()
    text = text[: setting.train_bytes]
    torch.manual_seed(seed)
    model = Transformer(setting)
    chosen = optimizers(model)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda t: lr_factor(t, setting)) for o in chosen
    ]
    curve = []
    for step, (x, y) in zip(
        range(1, setting.steps + 1), batches(text, setting, seed), strict=False
    ):
        loss = cross_entropy(model(x).flatten(0, 1), y.flatten())
        model.zero_grad()
        loss.backward()
        for o in (*chosen, *schedulers):
            o.step()
        if watch is not None:
            watch(step, model, chosen)
        if step % (setting.steps // points) == 0:
            windows = 256 if step == setting.steps else 64  # the curve may be coarser than its end
            losses = (loss_on(model, t, setting.context, windows) for t in (held, text))
            curve.append(Point(step, *losses))
    return curve
