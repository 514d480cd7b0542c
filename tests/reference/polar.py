"""Float64 truths for the engine: polar factors, odd polynomials through the SVD, torch's loop."""

import numpy as np
import torch
from torch import Tensor

from torch_specgd.triton_kernels import Schedule


def polar(x: Tensor, tolerance: float = 1e-12) -> Tensor:
    """Compact polar factor of one matrix: singular values above the tolerance become one."""
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    keep = s > tolerance * s.max() if s.max() > 0 else torch.zeros_like(s, dtype=torch.bool)
    return u[:, keep] @ vh[keep]


def through_svd(x: Tensor, schedule: Schedule, norm: float) -> Tensor:
    """What a schedule does to one matrix in exact arithmetic, after division by `norm`."""
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    mapped = torch.from_numpy(np.asarray(schedule((s / norm).numpy())))
    return (u * mapped) @ vh


def schatten(x: Tensor, p: float) -> float:
    """Schatten-p norm of one matrix; p = 2 is the Frobenius norm."""
    return float((torch.linalg.svdvals(x.double()) ** p).sum() ** (1 / p))


def with_spectrum(values: Tensor, m: int, n: int, seed: int = 0) -> Tensor:
    """An m x n float64 matrix with random singular vectors and the given singular values."""
    generator = torch.Generator().manual_seed(seed)
    k = min(m, n)
    u, _ = torch.linalg.qr(torch.randn(m, k, generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(n, k, generator=generator, dtype=torch.float64))
    return (u * values.double()) @ v.T


def spectra(k: int) -> dict[str, Tensor]:
    """Adversarial spectra of k values, largest one."""
    i = torch.arange(1, k + 1, dtype=torch.float64)
    half = torch.where(i <= max(1, k // 2), 1.0, 0.0)
    low_rank = torch.where(i <= max(1, k // 10), 1.0, 0.0)
    spiked = torch.full((k,), 1e-2, dtype=torch.float64)
    spiked[0] = 1.0
    two_tiny = torch.full((k,), 1e-6, dtype=torch.float64)
    two_tiny[:2] = 1.0
    rank_one = torch.zeros(k, dtype=torch.float64)
    rank_one[0] = 1.0
    fraction = (i - 1) / max(1, k - 1)
    return {
        "flat": torch.ones(k, dtype=torch.float64),
        "linear": 1 - 0.999 * fraction,
        "log2": 10 ** (-2 * fraction),
        "log3": 10 ** (-3 * fraction),
        "log5": 10 ** (-5 * fraction),
        "power_half": i**-0.5,
        "power_one": 1 / i,
        "half_zero": half,
        "low_rank": low_rank,
        "spiked": spiked,
        "two_and_tiny": two_tiny,
        "rank_one": rank_one,
    }


def few_dimensions(n: int, count: int) -> Tensor:
    """Matrices with a few active rows: ones, zeros and small values in random directions.

    Here rounding does not average out as it does over hundreds of dimensions: an entry of a
    polynomial that is large for a zero direction is rounded into a direction at one.
    """
    u = torch.linalg.qr(torch.randn(count, n, n))[0]
    v = torch.linalg.qr(torch.randn(count, n, n))[0]
    kind = torch.randint(0, 3, (count, n))
    s = torch.where(kind == 1, 10 ** (-3 * torch.rand(count, n)), (kind == 0).float())
    s[:, 0] = 1.0
    return (u * s[:, None, :]) @ v
