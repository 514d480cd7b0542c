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

from specgd_common.cuts import Cut, joined, pieces, unpacked
from specgd_common.fused import fused_cut_of

from ..shrink.apply import commit
from ..shrink.per_parameter import add_value, whole
from ..shrink.report import ShrinkReport
from ..shrink.report_notes import statistics_notes
from ..targets.find import Patterns, Target, find_targets
from ..targets.parameters import unwrap

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
        fused: ``fused(name, weight) -> parts``, equal ones along the output dimension; None cuts
            the projections that ``Muon`` cuts: queries, keys and values, gate and up, the gates of
            LSTM and GRU.
        include: Which parameters, see ``find_targets``; default: weights of linear,
            convolutional and recurrent layers.
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
    targets = [t for t in found if include is not None or _is_layer_weight(model, t)]
    skipped += [
        t.left("not a linear, convolutional or recurrent weight") for t in found if t not in targets
    ]
    if not targets:
        raise ValueError("no linear, convolutional or recurrent weight to reinitialize")
    values: dict[str, Tensor] = {}
    rows = []
    with torch.no_grad():
        for t in targets:
            w = whole(t.parameter)
            cut = (0, _equal(w, t, fused(t.name, w))) if fused else model_cut(model, t, w)
            new = w.lerp(isometry(w, t.kind, cut), strength)
            rows.append(add_value(t, new, values))
    notes = statistics_notes(model, rows)
    report = ShrinkReport("fire_reinit", {"strength": strength}, rows, skipped, notes)
    return commit(
        model, targets, report, values=values, inplace=inplace, dry_run=dry_run, **handover
    )


def isometry(w: Tensor, kind: str = "Linear.weight", cut: Cut | None = None) -> Tensor:
    """Return the nearest tensor whose taps all have the singular values sqrt(out / in) / taps.

    Args:
        w: ``(out, in)`` or ``(out, in, *taps)``; ``(in, out)`` for transformers' Conv1D and
            ``(in, out / groups, *taps)`` for transposed convolutions, told by ``kind``.
        kind: Owner and attribute, as in ``Target.kind``.
        cut: How the outputs, as dimension 0, are cut into independent matrices; None: one matrix.

    Returns:
        Same shape and dtype.
    """
    x = w.transpose(0, 1) if stored_in_out(kind, w.ndim) else w
    polar = joined([_scaled_polar(part) for part in pieces(x, cut)], cut)
    return polar if x is w else polar.transpose(0, 1)


def stored_in_out(kind: str, ndim: int) -> bool:
    """Say whether the first dimension of a weight counts its inputs, told by owner and shape."""
    return kind == "Conv1D.weight" or (kind.startswith("ConvTranspose") and ndim > 2)


def _scaled_polar(x: Tensor) -> Tensor:
    out, inputs = x.shape[:2]
    taps = math.prod(x.shape[2:])
    matrices = x.reshape(out, inputs, taps).permute(2, 0, 1)
    polar = _polar(matrices.contiguous()) * (math.sqrt(out / inputs) / taps)
    return polar.permute(1, 2, 0).reshape(x.shape)


def model_cut(model: nn.Module, t: Target, w: Tensor) -> Cut | None:
    """Return how a known fused projection is cut along its outputs."""
    name = f"{t.module}.{t.kind.partition('.')[2]}".lstrip(".")
    cut = fused_cut_of(unwrap(model), name)
    if cut is None or cut[0] != int(stored_in_out(t.kind, w.ndim)):
        return None
    _, sizes, repeats = unpacked(cut)
    return 0, sizes, repeats


def _equal(w: Tensor, t: Target, parts: int) -> tuple[int, ...]:
    """Return the sizes of as many equal parts as the user has declared."""
    outputs = w.shape[int(stored_in_out(t.kind, w.ndim))]
    if parts < 1 or outputs % parts:
        raise ValueError(f"{outputs} outputs of {t.name!r} cannot be split into {parts} parts")
    return (outputs // parts,) * parts


def _polar(x: Tensor) -> Tensor:
    """Return polar factors of a stack, accurate also for condition numbers beyond 1e4.

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


def _is_layer_weight(model: nn.Module, t: Target) -> bool:
    attribute = t.kind.partition(".")[2]
    if t.parameter.ndim < 2 or t.direction_of is not None:
        return False
    module = unwrap(model)
    tables = (nn.Embedding, nn.EmbeddingBag)
    is_table = any(isinstance(module.get_submodule(owner), tables) for owner in t.owners)
    return (attribute.endswith("weight") or attribute.startswith("weight_")) and not is_table
