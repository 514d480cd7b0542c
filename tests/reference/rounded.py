"""16-bit storage with float32 accumulation, as tensor cores do it, emulated on any CPU."""

import torch
from torch import Tensor

from torch_specgd.triton_kernels.iterate.products import TorchProducts


class RoundedProducts(TorchProducts):
    """Every product in float32, its result rounded to the operand's dtype once.

    The others differ in three places: how two matrices are multiplied, what is done with a result
    that ought to be symmetric, and what with any result.
    """

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        return a.float() @ b.float()

    def symmetrized(self, d: Tensor) -> Tensor:
        return d

    def stored(self, d: Tensor, dtype: torch.dtype) -> Tensor:
        return d.to(dtype)

    def gram(self, x: Tensor, gamma: float = 0.0) -> Tensor:
        d = self.multiply(x, x.mT)
        d.diagonal(dim1=-2, dim2=-1).add_(gamma)
        return self.stored(self.symmetrized(d), x.dtype)

    def symmetric(
        self,
        a: Tensor,
        b: Tensor,
        c: Tensor | None = None,
        alpha: float = 1.0,
        beta: float = 0.0,
        gamma: float = 0.0,
        spare: bool = False,
    ) -> Tensor:
        d = alpha * self.multiply(a, b)
        if c is not None:
            d += beta * c.float()
        d.diagonal(dim1=-2, dim2=-1).add_(gamma)
        return self.stored(self.symmetrized(d), a.dtype)

    def apply(self, q: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        return self.stored(self.multiply(q, x), x.dtype)


class MirroredProducts(RoundedProducts):
    """The same where one triangle is computed and mirrored, as every kernel and large CPU
    product does: what should be symmetric then is, and off by what the other half held."""

    def symmetrized(self, d: Tensor) -> Tensor:
        return _mirrored(d)


class FlushedProducts(MirroredProducts):
    """Matrix units that take float16 denormals for zero (MI200's do), and never write one."""

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        return super().multiply(_flushed(a), _flushed(b))

    def stored(self, d: Tensor, dtype: torch.dtype) -> Tensor:
        return _flushed(super().stored(d, dtype))


def _flushed(x: Tensor) -> Tensor:
    return torch.where(x.abs() < torch.finfo(x.dtype).smallest_normal, 0.0, x)


class SplitProducts(RoundedProducts):
    """Float32 products as tensor cores do them in three TF32 products, which lose two bits."""

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        return _split_product(a, b)


def _tf32(x: Tensor) -> Tensor:
    """Cut the mantissa to 10 bits."""
    return (x.view(torch.int32) & -(1 << 13)).view(torch.float32)


def _split_product(a: Tensor, b: Tensor) -> Tensor:
    high_a, high_b = _tf32(a), _tf32(b)
    low_a, low_b = _tf32(a - high_a), _tf32(b - high_b)
    return (low_a @ high_b + high_a @ low_b) + high_a @ high_b


def _mirrored(x: Tensor) -> Tensor:
    return x.tril() + x.tril(-1).mT


def largest_singular_value(y: Tensor) -> float:
    """The largest of a batch; infinity if anything is not finite."""
    if not y.isfinite().all():
        return float("inf")
    return float(torch.linalg.matrix_norm(y.double(), 2).max())
