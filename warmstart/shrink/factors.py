"""Shrink factors: pure functions of a weight and a direction.

    s_u = clamp(cos(G_u, w_u), floor, 1)

with G the exponential moving average of the *negative* gradients: where descent would lengthen a
unit the unit is kept, where it would shorten it or has nothing to say the unit goes to the floor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ZERO_GRADIENT_RULES = ("floor", "keep")


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """Return float64 for float64, float32 for everything shorter."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def sum_over(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Return the sum with kept dimensions; none means no sum (torch would sum all of them)."""
    return x.sum(dim=tuple(dims), keepdim=True) if len(dims) else x


def _scaled(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Return each unit over its largest entry: squares neither underflow nor overflow."""
    x = x.to(accumulation_dtype(x))
    peak = x.abs().amax(dim=tuple(dims), keepdim=True) if len(dims) else x.abs()
    return x / torch.where(peak == 0, torch.ones_like(peak), peak)


def unit_cosine(weight: Tensor, direction: Tensor, dims: Sequence[int]) -> Tensor:
    """Return the cosine between each unit of a weight and of a direction; 0 where either is zero.

    Unlike ``torch.cosine_similarity`` there is no epsilon: the result does not depend on the scale
    of either argument, down to the smallest normal numbers.

    Args:
        weight: Any shape, any real floating dtype.
        direction: Same shape.
        dims: Dimensions over which one unit extends; none makes every entry a unit.

    Returns:
        Float32 (float64 for float64 weights), ``weight``'s shape with ``dims`` kept as 1.

    Example:
        >>> import torch
        >>> from warmstart import unit_cosine
        >>> w = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
        >>> unit_cosine(w, 1e-30 * torch.tensor([[3.0, 4.0], [-2.0, 0.0]]), (1,)).flatten()
        tensor([ 1., -1.])
    """
    if weight.shape != direction.shape:
        raise ValueError(f"direction {tuple(direction.shape)} for weight {tuple(weight.shape)}")
    w, g = _scaled(weight, dims), _scaled(direction, dims).to(accumulation_dtype(weight))
    length = (sum_over(w * w, dims) * sum_over(g * g, dims)).sqrt()
    dot = sum_over(w * g, dims)
    return torch.where(length == 0, torch.zeros_like(dot), dot / length)


def magnitude_cosine(g: Tensor, v: Tensor, direction_g: Tensor, direction_v: Tensor) -> Tensor:
    """Return the cosine of weight normalization's w = g v / |v|, from g and v alone.

        cos = sign(g) D_g / sqrt(D_g^2 + (|v| / g)^2 |D_v|^2)

    because D_g is the part of the weight's direction along v, and D_v the part across it times
    g / |v|. It equals ``unit_cosine`` of the effective weight with its own gradient.
    """
    dims = tuple(d for d in range(v.ndim) if g.ndim == 0 or g.shape[d] == 1)
    dtype = accumulation_dtype(g)
    g, v, d_g, d_v = (x.to(dtype) for x in (g, v, direction_g, direction_v))
    scale = sum_over(v * v, dims).sqrt().reshape(g.shape) / g
    across_peak = d_v.abs().amax(dims, keepdim=True).reshape(g.shape) * scale.abs()
    peak = torch.maximum(across_peak, d_g.abs())
    peak = torch.where(peak == 0, torch.ones_like(peak), peak)
    along = d_g / peak
    across = sum_over((d_v * (scale / peak).reshape(_kept(v, dims))) ** 2, dims).reshape(g.shape)
    length = (along * along + across).sqrt()
    defined = (length > 0) & (g != 0)
    return torch.where(defined, along * g.sign() / length, torch.zeros_like(along))


def product_cosine(b: Tensor, a: Tensor, direction_b: Tensor) -> Tensor:
    """Return the cosine of each row of the merged B A with its direction, from the factors.

        cos_o = <D_o, B_o> / sqrt((D_o K^-1 D_o^T) (B_o K B_o^T)),   K = A A^T

    The merged weight's gradient G reaches B as D = G A^T, that is, by what of G lies in the span
    of A's rows; its length there is that of D under K^-1. Unlike the cosine of B's own rows the
    result is the same for (B, A) and (B R, R^-1 A).

    Args:
        b: ``(out, r)``, or ``(out, r, 1, ...)`` for convolutions.
        a: ``(r, ...)``.
        direction_b: Shaped like ``b``.

    Returns:
        ``(out, 1, ...)`` in ``b``'s accumulation precision; 0 where either row vanishes.
    """
    dims = tuple(range(1, b.ndim))
    rows, d = (_scaled(x, dims).flatten(1).double() for x in (b, direction_b))
    # K in float64: its condition number is the square of A's.
    flat = _scaled(a, tuple(range(a.ndim))).flatten(1).double()
    k = flat @ flat.T
    length = ((d @ torch.linalg.pinv(k, hermitian=True)) * d).sum(1) * ((rows @ k) * rows).sum(1)
    cosine = (rows * d).sum(1) / torch.where(length > 0, length, torch.ones_like(length)).sqrt()
    cosine = torch.where(length > 0, cosine.clamp(-1.0, 1.0), torch.zeros_like(cosine))
    return cosine.reshape(_kept(b, dims)).to(accumulation_dtype(b))


def _kept(v: Tensor, dims: Sequence[int]) -> list[int]:
    return [1 if d in dims else n for d, n in enumerate(v.shape)]


def factors_from_cosine(cosine: Tensor, floor: float, *, no_signal: Tensor | None = None) -> Tensor:
    """Return ``clamp(cosine, floor, 1)``; units marked ``no_signal`` keep factor 1.

    Raises:
        ValueError: If ``floor`` is outside (0, 1].
    """
    check_floor(floor)
    s = cosine.clamp(min=floor, max=1.0)
    return s if no_signal is None else torch.where(no_signal, torch.ones_like(s), s)


def shrink_factors(
    weight: Tensor,
    direction: Tensor,
    dims: Sequence[int],
    *,
    floor: float = 0.3,
    zero_gradient: str = "floor",
) -> Tensor:
    """Return the factor of every unit: ``clamp(cos(direction, weight), floor, 1)``.

    Args:
        weight: Any shape, any real floating dtype.
        direction: Same shape; the moving average of the *negative* gradients.
        dims: Dimensions over which one unit extends.
        floor: Smallest factor (the paper's lambda), in (0, 1].
        zero_gradient: ``"floor"`` (the official rule) or ``"keep"``: what happens to units whose
            direction is exactly zero, such as embeddings of tokens that never occurred.

    Returns:
        Factors in [floor, 1], ``weight``'s shape with ``dims`` kept as 1, float32 (or float64).

    Raises:
        ValueError: For a floor outside (0, 1], different shapes or an unknown rule.

    Source: Shin et al. 2024 (arXiv 2410.23495) and its official code.

    Example:
        >>> import torch
        >>> from warmstart import shrink_factors
        >>> w = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> shrink_factors(w, torch.tensor([[2.0, 0.0], [-2.0, 0.0]]), (1,)).flatten()
        tensor([1.0000, 0.3000])
    """
    check_floor(floor)
    check_zero_gradient(zero_gradient)
    cosine = unit_cosine(weight, direction, dims)
    no_signal = None
    if zero_gradient == "keep":
        no_signal = sum_over(direction.abs(), dims) == 0
    return factors_from_cosine(cosine, floor, no_signal=no_signal)


def check_floor(floor: float, name: str = "floor") -> None:
    """Refuse floors that could kill a unit for good (0), flip it (< 0) or grow it (> 1)."""
    if isinstance(floor, bool) or not isinstance(floor, (int, float)):
        raise TypeError(f"{name} must be a number in (0, 1], got {type(floor).__name__}")
    if not 0.0 < floor <= 1.0:
        raise ValueError(f"{name} must be in (0, 1], got {floor}")


def check_zero_gradient(rule: str) -> None:
    """Refuse unknown rules for units without a gradient."""
    if rule not in ZERO_GRADIENT_RULES:
        raise ValueError(f"zero_gradient must be one of {ZERO_GRADIENT_RULES}, got {rule!r}")
