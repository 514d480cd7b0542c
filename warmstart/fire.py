"""Frobenius-isometry reinitialization (FIRE): every weight becomes its nearest scaled isometry.

    W <- sqrt(out / in) / taps * U V^T,   W = U S V^T

The published code iterates ten cubic Newton-Schulz steps from X / |X|_F, which leaves many singular
values far from 1; here the orthogonalization engine's precise method brings them within 1e-3.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .apply import commit
from .notes import statistics_notes
from .report import ShrinkReport
from .rows import add_value, whole
from .targets import Patterns, Skipped, Target, find_targets

# |W W^T - 1| up to which a matrix counts as an isometry: singular values are within half of it.
_ISOMETRY = 1e-3
# Each call lifts small singular values 1e4-fold or more; float32 holds no more than 1e8.
_MORE_CALLS = 2


def fire_reinit(
    model: nn.Module,
    *,
    strength: float = 1.0,
    fused: Callable[[str, Tensor], int] | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    inplace: bool = True,
    dry_run: bool = False,
    **handover: Any,
) -> ShrinkReport:
    """Replace every weight matrix by its polar factor, times sqrt(out / in) / taps.

    Convolutions are treated tap by tap. Fused attention projections are split into their parts
    first: the polar factor of three stacked matrices is not the stack of their polar factors.
    Biases, normalization and embeddings stay. Zero matrices stay zero.

    Args:
        model: Any module; changed in place. Needs no data.
        strength: ``W <- strength * isometry + (1 - strength) * W``, in (0, 1].
        fused: ``fused(name, weight) -> parts`` stacked along the output dimension; None knows
            MultiheadAttention and the names ``c_attn`` (3), ``qkv``, ``in_proj`` and ``Wqkv`` (3).
        include: Which parameters, see ``find_targets``; default: weights of linear and
            convolutional layers.
        exclude: Which parameters not.
        inplace: False changes a copy, found in ``report.model``.
        dry_run: Report only.
        **handover: ``optimizer``, ``optimizer_state``, ``along``, as in ``dash_shrink``.

    Returns:
        A ``ShrinkReport`` without factors: the old singular values are gone.

    Raises:
        ValueError: For a strength outside (0, 1] or parts that do not divide the outputs.

    Source: Han et al. 2026 (arXiv 2602.08040) and its official code.

    Example:
        >>> import torch
        >>> from warmstart import fire_reinit
        >>> layer = torch.nn.Linear(8, 8)
        >>> _ = fire_reinit(layer)
        >>> bool((torch.linalg.svdvals(layer.weight) - 1).abs().max() < 1e-3)
        True
    """
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"strength must be in (0, 1], got {strength}")
    model = model if inplace else copy.deepcopy(model)
    found, skipped = find_targets(
        model, units="filter", include=include, exclude=exclude, bias="skip"
    )
    targets = [t for t in found if include is not None or _is_layer_weight(t)]
    skipped += [
        Skipped(t.name, "not a linear or convolutional weight") for t in found if t not in targets
    ]
    if not targets:
        raise ValueError("no linear or convolutional weight to reinitialize")
    values: dict[str, Tensor] = {}
    rows = []
    with torch.no_grad():
        for t in targets:
            w = whole(t.parameter)
            parts = (fused or default_parts)(t.name, w)
            new = w.lerp(isometry(w, t.kind, parts), strength)
            rows.append(add_value(t, new, values))
    notes = statistics_notes(model, rows)
    report = ShrinkReport("fire_reinit", {"strength": strength}, rows, skipped, notes)
    return commit(
        model, targets, report, values=values, inplace=inplace, dry_run=dry_run, **handover
    )


def isometry(w: Tensor, kind: str = "Linear.weight", parts: int = 1) -> Tensor:
    """The nearest matrix (or taps of matrices) with all singular values sqrt(out / in) / taps.

    Args:
        w: ``(out, in)`` or ``(out, in, *taps)``; ``(in, out)`` for transformers' Conv1D and
            ``(in, out / groups, *taps)`` for transposed convolutions, told by ``kind``.
        kind: Owner and attribute, as in ``Target.kind``.
        parts: Independent matrices stacked along the output dimension.

    Returns:
        Same shape and dtype.
    """
    owner = kind.partition(".")[0]
    flipped = owner.startswith("ConvTranspose") or kind == "Conv1D.weight"
    x = w.transpose(0, 1) if flipped and (w.ndim > 2 or kind == "Conv1D.weight") else w
    out, inputs = x.shape[:2]
    if parts < 1 or out % parts:
        raise ValueError(f"{out} outputs cannot be split into {parts} parts")
    taps = math.prod(x.shape[2:])
    stacked = x.reshape(parts, out // parts, inputs, taps).permute(0, 3, 1, 2)
    polar = _polar(stacked.contiguous()) * (math.sqrt(out / parts / inputs) / taps)
    polar = polar.permute(0, 2, 3, 1).reshape(x.shape)
    return polar.transpose(0, 1) if x is not w else polar


def _polar(x: Tensor) -> Tensor:
    """Polar factors of a stack of matrices, accurate also for condition numbers beyond 1e4.

    One precise call brings singular values down to 1e-4 of the largest to 1, and lifts smaller ones
    by orders of magnitude; a square random matrix often has some. Another call finishes them.
    """
    # Loaded here: the engine is another part of the distribution, needed by this function alone.
    from torch_specgd.triton_kernels import orthogonalize

    polar = orthogonalize(x, method="precise")
    for _ in range(_MORE_CALLS):
        short = polar if polar.shape[-2] <= polar.shape[-1] else polar.mT
        one = torch.eye(short.shape[-2], dtype=x.dtype, device=x.device)
        loose = torch.linalg.matrix_norm(short @ short.mT - one) > _ISOMETRY
        loose &= polar.flatten(-2).any(-1)  # zero matrices have no polar factor to approach
        if not loose.any():
            break
        polar[loose] = orthogonalize(polar[loose].contiguous(), method="precise")
    return polar


def default_parts(name: str, weight: Tensor) -> int:
    """3 for fused query-key-value projections by their usual names, else 1."""
    parts = name.split(".")
    names = ("in_proj_weight", "c_attn", "qkv", "Wqkv", "in_proj")
    return 3 if any(p in names for p in parts[-2:]) else 1


def _is_layer_weight(t: Target) -> bool:
    owner, _, attribute = t.kind.partition(".")
    if t.parameter.ndim < 2 or t.direction_of is not None:
        return False
    return attribute.endswith("weight") and not owner.startswith("Embedding")
