"""Rounding that an adversary chooses: searches and whole families in few dimensions, 16 bits."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reference.polar import few_dimensions
from reference.rounded import MirroredProducts, RoundedProducts
from reference.search import Measure, rotations, searched
from torch_specgd.triton_kernels import SCHEDULES, Schedule
from torch_specgd.triton_kernels.iterate.iteration import direct
from torch_specgd.triton_kernels.iterate.normalize import begin
from torch_specgd.triton_kernels.iterate.products import TorchProducts

LIMIT = 1.1
# What this CPU's library rounds (products and diagonals, one after the other), one rounding a
# product, and what a GPU's kernels do from a start that looks at nothing.
WAYS = {
    "library": (TorchProducts(), True),
    "rounded": (RoundedProducts(), True),
    "mirrored": (MirroredProducts(), False),
}
BOTH = ("deep", "flat")


def _largest(y: Tensor) -> Tensor:
    """Largest singular value of each; what is not finite counts as 1e15."""
    y = y.float().nan_to_num(1e15, 1e15, -1e15).clamp(-1e15, 1e15)
    top = y.abs().amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)
    gram = (y / top) @ (y / top).mT
    return torch.linalg.eigvalsh(gram)[:, -1].sqrt() * top.flatten()


def _measure(schedule: Schedule, way: str, dtype: torch.dtype = torch.bfloat16) -> Measure:
    ops, look = WAYS[way]

    def measure(x: Tensor) -> Tensor:
        start = begin(x, dtype, schedule.normalization, ops, look=look)
        return _largest(direct(start, schedule, ops))

    return measure


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["library", "mirrored"])
@pytest.mark.parametrize("name", BOTH)
def test_rotations_and_many_of_few_dimensions(name: str, way: str, dtype: torch.dtype) -> None:
    """One layer of thousands, at one step of thousands, would be enough to destroy a model."""
    measure = _measure(SCHEDULES[name], way, dtype)
    families = [rotations(40_000), *(few_dimensions(n, 3500) for n in (2, 3, 4, 6, 8, 12))]
    assert max(float(measure(x).max()) for x in families) < LIMIT


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("name", BOTH)
def test_a_search_finds_nothing_above_the_limit(name: str, way: str) -> None:
    """Training searches as well: momentum walks through matrices for millions of steps."""
    measure = _measure(SCHEDULES[name], way)
    assert max(searched(measure, n, n) for n in (2, 3)) < LIMIT


@pytest.mark.parametrize("way", ["library", "mirrored"])
@pytest.mark.parametrize("name", BOTH)
def test_headroom_is_sufficient(name: str, way: str) -> None:
    """What one step's rounding lifts beyond the next one's room, that one sends to infinity."""
    whole = SCHEDULES[name]
    assert isinstance(whole.headroom, tuple)
    for done in range(1, len(whole)):
        part = replace(whole, steps=whole.steps[:done])
        seen = max(searched(_measure(part, way), n, n) for n in (2, 3))
        assert seen < whole.headroom[done] * part.range(1e-9)[1], done


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("name", BOTH)
def test_headroom_is_needed(name: str, way: str) -> None:
    """Shows that the searches can fail: the same steps with a room of 1.01 each do diverge."""
    whole = SCHEDULES[name]
    assert isinstance(whole.headroom, tuple)
    # p(f s) takes what is f times as large, and has its room divided by f.
    tight = tuple(
        tuple(c * (room / 1.01) ** (2 * k + 1) for k, c in enumerate(step))
        for step, room in zip(whole.steps, whole.headroom, strict=True)
    )
    schedule = replace(whole, steps=tight)
    assert schedule.range(1e-9)[1] < LIMIT
    assert searched(_measure(schedule, way), 2, 2) > 2 * LIMIT
