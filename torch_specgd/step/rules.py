"""What scales an orthogonalized update on its way into a weight: its shape."""

import math
from collections.abc import Callable
from functools import lru_cache

AdjustLr = str | Callable[[int, int], float] | None

LR_SCALES = ("none", "original", "match_rms_adamw", "spectral", "spectral_unclamped")


def shape_scale(adjust_lr_fn: AdjustLr, m: int, n: int) -> float:
    """Return the factor on the learning rate of an m x n matrix (m outputs, n inputs).

    | name | factor | meaning |
    |---|---|---|
    | "none" | 1 | lr is the update's spectral norm, whatever the shape |
    | "original" (None) | sqrt(max(1, m / n)) | spectral norm lr if wide, more if tall |
    | "match_rms_adamw" | 0.2 sqrt(max(m, n)) | the update's RMS is that of AdamW: keep its lr |
    | "spectral" | sqrt(m / n) | RMS-to-RMS operator norm lr: one lr for every width |
    | "spectral_unclamped" | sqrt(m / n) | the same, by the name that torch 2.15 gives it |

    Args:
        adjust_lr_fn: One of the names above, or a function of (m, n).
        m: Rows of the logical matrix: after flattening a convolution, without batch dimensions.
        n: Columns.

    Returns:
        The factor.

    Source:
        torch.optim.Muon; Jordan 2024 (original); Moonlight, arXiv 2502.16982 (match_rms_adamw);
        Yang et al., arXiv 2310.17813 (spectral).

    Example:
        >>> shape_scale("original", 64, 16)
        2.0
        >>> shape_scale("match_rms_adamw", 100, 25)
        2.0
    """
    if callable(adjust_lr_fn):
        return float(adjust_lr_fn(m, n))
    if adjust_lr_fn == "none":
        return 1.0
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(m, n))
    if adjust_lr_fn in ("spectral", "spectral_unclamped"):
        return math.sqrt(m / n)
    return math.sqrt(max(1.0, m / n))


named_scale = lru_cache(maxsize=4096)(shape_scale)  # for names: a function may change its mind
