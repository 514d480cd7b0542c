"""The models whose optimizer steps are timed: shapes only, with gradients of a known spectrum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def spectrum(k: int) -> Tensor:
    """Singular values like those of momentum in training, largest first.

    ``i^-0.8 10^(-1.5 i / k)`` lies within the quantiles that experiments/muon_transformer.py
    measured (experiments/results/muon_spectra.csv). Gaussian matrices would flatter every method.
    """
    i = torch.arange(1.0, k + 1)
    return i**-0.8 * 10 ** (-1.5 * i / k)


@dataclass(frozen=True)
class Model:
    """Shapes of the matrices (2-D, 3-D stacks, 4-D convolutions) and of what AdamW takes."""

    title: str
    matrices: tuple[tuple[int, ...], ...]
    others: tuple[tuple[int, ...], ...] = ()

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """All shapes, matrices first."""
        return self.matrices + self.others

    def gradients(self) -> list[Tensor]:
        """A gradient of each shape in float32; of one shape all are rolled copies of one."""
        generator = torch.Generator().manual_seed(0)
        made: dict[tuple[int, ...], Tensor] = {}
        grads = []
        for i, shape in enumerate(self.shapes):
            if len(shape) == 1:
                grads.append(torch.randn(shape, generator=generator))
                continue
            if shape not in made:
                made[shape] = spectrum_matrix(as_2d(shape), generator)
            # Rolling rows multiplies by an orthogonal matrix: same singular values, other matrix.
            copies = shape[0] if len(shape) == 3 else 1
            rolled = [made[shape].roll(i + 7 * k, 0) for k in range(copies)]
            grads.append(torch.stack(rolled).reshape(shape))
        return grads


def as_2d(shape: tuple[int, ...]) -> tuple[int, int]:
    """The logical matrix of a shape: the last two dimensions of a stack, else (out, rest)."""
    if len(shape) == 3:
        return shape[1], shape[2]
    return shape[0], int(torch.Size(shape[1:]).numel())


def spectrum_matrix(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A matrix with random singular vectors and the singular values of `spectrum`."""
    m, n = shape
    k = min(m, n)
    u, v = (torch.linalg.qr(torch.randn(d, k, generator=generator))[0] for d in (m, n))
    return (u * spectrum(k)) @ v.T


def polar_error(model: Model, params: list[Tensor]) -> float:
    """How far a first step from zero is from a multiple of the gradient's polar factor.

    Returns:
        The largest ``||W / s - Q||_F / ||Q||_F`` over one parameter of each shape, Q exact, s the
        best scale (a scale is a learning rate, not an error).
    """
    worst = 0.0
    seen = set()
    for shape, w, g in zip(model.matrices, params, model.gradients(), strict=False):
        if shape in seen:
            continue
        seen.add(shape)
        matrix = (w[-1], g[-1]) if len(shape) == 3 else (w.flatten(1), g.flatten(1))
        step, gradient = (x.detach().double() for x in matrix)
        u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
        q = u @ vh
        scale = (step * q).sum() / (q * q).sum()
        worst = max(worst, float((step / scale - q).norm() / q.norm()))
    return worst


def gpt2(layers: int = 12) -> Model:
    """GPT-2 small's blocks; its embeddings are AdamW's in every optimizer and left out."""
    d = 768
    block = ((3 * d, d), (d, d), (4 * d, d), (d, 4 * d))
    vectors = ((d,), (d,), (3 * d,), (d,), (d,), (d,), (4 * d,), (d,))
    title = f"GPT-2 small: {4 * layers} matrices of {layers} blocks, {8 * layers} vectors"
    return Model(title, block * layers, vectors * layers)


def resnet18() -> Model:
    """ResNet-18 for ImageNet: 20 convolutions by Muon; the classifier and vectors by AdamW."""
    convolutions = [(64, 3, 7, 7)] + [(64, 64, 3, 3)] * 4
    for width in (128, 256, 512):
        convolutions += [(width, width // 2, 3, 3)] + [(width, width, 3, 3)] * 3
        convolutions += [(width, width // 2, 1, 1)]
    vectors = [(c[0],) for c in convolutions for _ in range(2)]
    title = "ResNet-18: 20 convolutions, classifier and batch norms by AdamW"
    return Model(title, tuple(convolutions), ((1000, 512), *vectors, (1000,)))


def lora() -> Model:
    """96 pairs of LoRA factors, rank 16, width 1024."""
    return Model("LoRA: 192 factors of rank 16 at width 1024", ((16, 1024), (1024, 16)) * 96)


def experts() -> Model:
    """One mixture-of-experts layer's up and down projections, stacked over experts."""
    title = "Experts: stacks of 8 x 256 x 512 and 8 x 512 x 256"
    return Model(title, ((8, 256, 512), (8, 512, 256)))


MODELS: dict[str, Callable[..., Model]] = {
    "gpt2": gpt2,
    "resnet18": resnet18,
    "lora": lora,
    "experts": experts,
}
