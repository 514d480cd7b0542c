"""bfloat16 in Triton's interpreter as tensor cores do it: wide products, rounded to nearest.

By itself the interpreter keeps bfloat16 as integers, which it multiplies as such, and cuts float32
off where a GPU rounds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def _widened(x: TensorHandle) -> TensorHandle:
    if x.dtype.scalar != tl.bfloat16:
        return x
    return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


@contextmanager
def multiplied_bfloat16() -> Iterator[None]:
    """Widen the operands of products to float32, and round to nearest what becomes bfloat16."""
    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def wide_dot(self: Any, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        return dot(self, _widened(a), _widened(b), *rest)

    def nearest(self: Any, x: TensorHandle, to: Any) -> TensorHandle:
        if (x.dtype.scalar, to.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, x, to)
        rounded = torch.from_numpy(np.ascontiguousarray(x.data)).to(torch.bfloat16)
        return TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)

    with (
        mock.patch.object(InterpreterBuilder, "create_dot", wide_dot),
        mock.patch.object(InterpreterBuilder, "cast_impl", nearest),
    ):
        yield
