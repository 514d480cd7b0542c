"""The bed of the warm-start experiments: hard Fashion-MNIST in expanding chunks, two small nets.

Plain Fashion-MNIST is too easy to show a gap between warm and cold starts. Here every image gets
a fixed distortion (shift, flip, inversion, pooling to 14x14, noise) from one seeded generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from bed import FASHION as DEFAULT_DATA
from bed import fashion_mnist
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy


def distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """A fixed distortion per image: (n, 28, 28) standardized -> (n, 1, 14, 14)."""
    n = len(images)
    shift = torch.randint(-4, 5, (n, 2), generator=generator)
    flip = torch.rand(n, generator=generator) < 0.5
    invert = torch.rand(n, generator=generator) < 0.5
    noise = torch.randn(n, 1, 14, 14, generator=generator)
    images = torch.where(flip[:, None, None], images.flip(-1), images)
    images = torch.where(invert[:, None, None], -images, images)
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4), mode="replicate")
    rows = (torch.arange(28) + 4 + shift[:, :1])[:, :, None]
    columns = (torch.arange(28) + 4 + shift[:, 1:])[:, None, :]
    moved = padded[torch.arange(n)[:, None, None], rows, columns]
    return avg_pool2d(moved[:, None], 2) + 0.35 * noise


def hard_fashion_mnist(
    directory: Path = DEFAULT_DATA, pool: int = 12_000
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels (the pool), test images and labels."""
    out: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", pool), ("t10k", 10_000)):
        images, labels = fashion_mnist(split, directory)
        x = (torch.from_numpy(images[:count].copy()).float() / 255 - 0.2860) / 0.3530
        out += [distort(x, generator), torch.from_numpy(labels[:count])]
    return out[0], out[1], out[2], out[3]


def conv_net(norm: bool, widths: tuple[int, ...] = (12, 12, 24, 24, 48)) -> nn.Sequential:
    """3x3 convolutions (every second with stride 2), ReLU, mean over positions, a linear head.

    With ``norm``: BatchNorm after each convolution, no bias. Without: biases, Kaiming init.
    """
    layers: list[nn.Module] = []
    inputs = 1
    for i, width in enumerate(widths):
        conv = nn.Conv2d(inputs, width, 3, stride=1 + i % 2, padding=1, bias=not norm)
        if not norm:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()] if norm else [conv, nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def sgd(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """SGD with momentum, starting from nothing."""
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


@dataclass
class Learner:
    """A model, its optimizer, and training to convergence on what has been seen."""

    model: nn.Module
    lr: float
    generator: torch.Generator
    make: Callable[[nn.Module, float], torch.optim.Optimizer] = sgd
    batch: int = 128
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.fresh_optimizer()

    def fresh_optimizer(self) -> None:
        """An optimizer that starts from nothing."""
        self.optimizer = self.make(self.model, self.lr)

    def fit(
        self, x: Tensor, y: Tensor, max_epochs: int = 150, target: float = 0.999
    ) -> tuple[int, float]:
        """Epochs until the epoch's mean train accuracy reaches the target; steps and accuracy."""
        steps, accuracy = 0, 0.0
        self.model.train()
        for _ in range(max_epochs):
            order = torch.randperm(len(x), generator=self.generator)
            right = 0
            for index in order.split(self.batch):
                logits = self.model(x[index])
                loss = cross_entropy(logits, y[index])
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                self.optimizer.step()
                right += int((logits.detach().argmax(1) == y[index]).sum())
                steps += 1
            accuracy = right / len(x)
            if accuracy >= target or not torch.isfinite(loss):
                break
        return steps, accuracy

    def test(self, x: Tensor, y: Tensor) -> float:
        """Accuracy in percent, in eval mode."""
        return accuracy(self.model, x, y)


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent of right answers, in eval mode."""
    model.eval()
    parts = zip(x.split(1000), y.split(1000), strict=True)
    return 100.0 * sum(int((model(a).argmax(1) == b).sum()) for a, b in parts) / len(x)
