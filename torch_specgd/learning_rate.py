"""How the learning rate depends on a matrix's shape."""

import math

LR_SCALES = ("original", "match_rms_adamw")


def shape_scale(adjust_lr_fn: str | None, m: int, n: int) -> float:
    """Factor on the learning rate of an m x n matrix (m outputs, n inputs).

    | name | factor | meaning |
    |---|---|---|
    | "original" (None) | sqrt(max(1, m / n)) | spectral norm lr if wide, more if tall |
    | "match_rms_adamw" | 0.2 sqrt(max(m, n)) | the update's RMS is that of AdamW: keep its lr |

    Args:
        adjust_lr_fn: One of the names above.
        m: Rows of the logical matrix: after flattening a convolution, without batch dimensions.
        n: Columns.

    Returns:
        The factor.

    Source:
        torch.optim.Muon; Jordan 2024 (original); Moonlight, arXiv 2502.16982 (match_rms_adamw).

    Example:
        >>> shape_scale("original", 64, 16)
        2.0
        >>> shape_scale("match_rms_adamw", 100, 25)
        2.0
    """
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(m, n))
    return math.sqrt(max(1.0, m / n))
