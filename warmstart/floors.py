"""How small a factor may get, layer by layer: the paper's one number, or our norm-aware rule."""

from __future__ import annotations

from collections.abc import Sequence

from .factors import check_floor
from .norms import NormMap
from .targets import Target

# Where a normalization follows, only the effective learning rate changes: the official floor.
NORMALIZED_FLOOR = 0.3
# What a segment without normalization lets through if every unit of it is at its floor.
SEGMENT_SIGNAL = 0.1


def check_floor_rule(floor: float | str) -> None:
    """Refuse floors that are neither a number in (0, 1] nor "auto"."""
    if isinstance(floor, str):
        if floor != "auto":
            raise ValueError(f'floor must be in (0, 1] or "auto", got {floor!r}')
    else:
        check_floor(floor)


def choose_floors(
    targets: Sequence[Target], floor: float | str, norms: NormMap
) -> dict[str, float]:
    """The floor of every target.

    A number is taken for all. ``"auto"`` is our own rule, not the paper's: n weights in a row
    without a normalization between them multiply their factors, so that a floor of 0.3 leaves
    0.3^n of the signal (0.0007 at six layers) and training slows down instead of speeding up. The
    rule gives each such weight ``max(0.3, 0.1^(1 / n))``, and 0.3 wherever a normalization follows.

    Where every weight is normalized it is the official 0.3. Checked on nets and seeds that it was
    not chosen on (docs/warmstart.md): with normalization layers it reached a cold start's accuracy
    in 0.36 of its steps; without them it ended 1.5 points below one. Compare before you rely on it.

    Args:
        targets: What is shrunk.
        floor: A number in (0, 1] or ``"auto"``.
        norms: What a forward pass has shown.

    Returns:
        Target name -> floor.

    Raises:
        ValueError: For ``"auto"`` without a forward pass (a fed direction).

    Example:
        >>> import torch
        >>> from warmstart import dash_shrink
        >>> plain = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(6)])
        >>> batch = (torch.randn(8, 4), torch.randint(4, (8,)))
        >>> report = dash_shrink(plain, [batch], floor="auto")
        >>> round(report.row("0.weight").floor, 2)
        0.68
    """
    if not isinstance(floor, str):
        return {t.name: float(floor) for t in targets}
    if not norms.calls:
        raise ValueError('floor="auto" looks at a forward pass; give data, not a fed direction')
    chains = norms.chains()
    # A module that was not seen running (used as a function) is taken for one of a long row.
    unseen = max(len([c for c in norms.calls if c is not None]), 1)
    return {t.name: segment_floor(chains.get(t.module, unseen)) for t in targets}


def segment_floor(length: int) -> float:
    """Floor of each of ``length`` weights in a row; 0 means that a normalization follows."""
    return max(NORMALIZED_FLOOR, SEGMENT_SIGNAL ** (1.0 / length)) if length else NORMALIZED_FLOOR
