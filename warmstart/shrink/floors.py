"""How small a factor may get, layer by layer, under ``floor="auto"``: our norm-aware rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..direction.norms import NormMap
from ..targets.find import Target
from .report import ParameterRow

# Where a normalization follows, only the effective learning rate changes: the official floor.
NORMALIZED_FLOOR = 0.3
# What a segment without normalization lets through if every unit of it is at its floor.
SEGMENT_SIGNAL = 0.1


def auto_floors(targets: Sequence[Target], norms: NormMap) -> dict[str, float]:
    """Return the floor of every target under ``floor="auto"``, a rule of ours, not the paper's.

    n weights in a row without a normalization between them multiply their factors, so that a floor
    of 0.3 leaves 0.3^n of the signal (0.0007 at six layers) and training slows down instead of
    speeding up. The rule gives each such weight ``max(0.3, 0.1^(1 / n))``, and 0.3 wherever a
    normalization follows.

    Biases then follow ``chained_biases``. Where every weight is normalized the rule is the official
    one with 0.3. How it was chosen, and how it did on a net and on seeds that it was not chosen on,
    stands in docs/warmstart_results.md; without the chained biases it fails on that net.

    Args:
        targets: What is shrunk.
        norms: What a forward pass has shown.

    Returns:
        Target name -> floor.

    Raises:
        ValueError: Without a forward pass (a fed direction).

    Example:
        >>> import torch
        >>> from warmstart import dash_shrink
        >>> plain = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(6)])
        >>> batch = (torch.randn(8, 4), torch.randint(4, (8,)))
        >>> report = dash_shrink(plain, [batch], floor="auto")
        >>> round(report.row("0.weight").floor, 2)
        0.68
    """
    if not norms.calls:
        raise ValueError('floor="auto" looks at a forward pass; give data, not a fed direction')
    chains = norms.chains()
    # A module that was not seen running (used as a function) is taken for one of a long row.
    unseen = max(len([c for c in norms.calls if c is not None]), 1)
    return {t.name: segment_floor(chains.get(t.module, unseen)) for t in targets}


def segment_floor(length: int) -> float:
    """Return the floor of each of ``length`` weights in a row (0: a normalization follows)."""
    return max(NORMALIZED_FLOOR, SEGMENT_SIGNAL ** (1.0 / length)) if length else NORMALIZED_FLOOR


def chained_biases(
    targets: Sequence[Target], rows: Mapping[str, ParameterRow], norms: NormMap
) -> dict[str, float]:
    """Return the factor of every bias that keeps it in proportion to the signal it is added to.

        c_l = c_(l-1) |s_l w_l| / |w_l|        along a row of weights, c = 1 behind a normalization
        b_l <- c_l b_l

    Without this, a row of shrunk weights hands layer l a signal that is shorter by the product of
    all factors before it, while its bias shrank by one factor: biases decide which ReLUs are open,
    and features are lost. With equal factors s the biases get s, s^2, s^3, ... and a ReLU net stays
    the same function up to its scale. Part of ``floor="auto"``, ours, not the paper's; a weight
    alone between two normalizations, and its bias, follow the official rule.

    Args:
        targets: What is shrunk.
        rows: Target name -> its row, with norms before and after.
        norms: What a forward pass has shown.

    Returns:
        Bias name -> factor, for biases in rows of two or more weights without a normalization.
    """
    weights: dict[str, list[ParameterRow]] = {}
    for t in targets:
        if not _is_bias(t):
            weights.setdefault(t.module, []).append(rows[t.name])
    signal: dict[str | None, float] = {None: 1.0}
    for module in norms.calls:
        if module is None:
            continue
        own = weights.get(module, [])
        # Recurrent cells have several weights and no single gain: their biases keep their factor.
        single = len(own) == 1 and own[0].norm_before > 0
        ratio = own[0].norm_after / own[0].norm_before if single else 1.0
        signal[module] = signal[norms.upstream[module]] * ratio
    chains = norms.chains()
    return {
        t.name: signal[t.module]
        for t in targets
        if _is_bias(t) and chains.get(t.module, 0) > 1 and len(weights.get(t.module, [])) < 2
    }


def _is_bias(t: Target) -> bool:
    return t.kind.rpartition(".")[2] in ("bias", "in_proj_bias")
