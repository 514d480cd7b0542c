"""16-bit storage with float32 accumulation, as tensor cores do it, emulated on any CPU."""

import torch
from torch import Tensor

from torch_specgd.triton_kernels.products import TorchProducts


class RoundedProducts(TorchProducts):
    """Every product in float32, its result rounded to the operand's dtype once."""

    def gram(self, x: Tensor) -> Tensor:
        return (x.float() @ x.float().mT).to(x.dtype)

    def symmetric(
        self,
        a: Tensor,
        b: Tensor,
        c: Tensor | None = None,
        alpha: float = 1.0,
        beta: float = 0.0,
        gamma: float = 0.0,
    ) -> Tensor:
        d = alpha * (a.float() @ b.float())
        if c is not None:
            d += beta * c.float()
        d.diagonal(dim1=-2, dim2=-1).add_(gamma)
        return d.to(a.dtype)

    def apply(self, q: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        return (q.float() @ x.float()).to(x.dtype)


def largest_singular_value(y: Tensor) -> float:
    """The largest of a batch; infinity if anything is not finite."""
    if not y.isfinite().all():
        return float("inf")
    return float(torch.linalg.matrix_norm(y.double(), 2).max())
