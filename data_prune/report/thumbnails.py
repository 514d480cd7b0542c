"""An example of a data set -> a small picture of it, where it is or holds an image."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from specgd_common.optional import needed

SIDE = 72


def thumbnail(example: Any) -> bytes | None:
    """Return a PNG of at most 72 x 72 pixels, or None where the example shows no image.

    An image is one of Pillow, or an array or tensor (H, W), (C, H, W) or (H, W, C) with one, three
    or four channels. It may be the example itself, or the first one found in a tuple or dict.
    """
    picture = _picture(example)
    if picture is None:
        return None
    picture = picture.convert("RGB")
    scale = SIDE / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    image = needed("PIL.Image", "plot").Resampling
    buffer = io.BytesIO()
    picture.resize(size, image.NEAREST if scale > 1 else image.LANCZOS).save(buffer, "PNG")
    return buffer.getvalue()


def _picture(value: Any) -> Any:
    """Return an image of Pillow, or None."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return next((found for part in value if (found := _picture(part)) is not None), None)
    if hasattr(value, "convert") and hasattr(value, "resize"):
        return value
    array = value.detach().cpu().numpy() if hasattr(value, "detach") else value
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        return None
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3) or min(array.shape[:2]) < 4:
        return None
    if array.ndim == 3:
        if array.shape[-1] not in (1, 3, 4):
            return None
        array = array[..., 0] if array.shape[-1] == 1 else array[..., :3]
    return needed("PIL.Image", "plot").fromarray(_bytes(array))


def _bytes(array: np.ndarray) -> np.ndarray:
    """Return brightness as 0 to 255: bytes as they are, [0, 1] widened, all else stretched."""
    if array.dtype == np.uint8:
        return array
    values = array.astype(np.float64)
    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    if low < 0 or high > 1:
        values = (values - low) / max(high - low, 1e-12)
    return np.rint(255 * np.nan_to_num(values, posinf=1.0, neginf=0.0)).astype(np.uint8)
