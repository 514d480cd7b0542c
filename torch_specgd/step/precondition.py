"""Preconditioners: what an update is multiplied by before its polar factor is taken.

A preconditioner is a function of (update, gradient, state), each of one parameter's matrices of one
shape. `Shampoo` and `Eigenbasis` are two; any other function of this form is one as well. One whose
attribute `together` is true gets the matrices of all parameters of one shape in one call.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import integer, number, one_of
from ..triton_kernels import inverse_root

Precondition = str | Callable[[Tensor, Tensor, dict[str, Any]], Tensor] | None

FLOOR = 0.01  # of Adam's divisor, relative to its own size
TALLEST = 4  # an adapter's outputs would cost more than all else
LARGEST_SIDE = 8192  # its square would outgrow most models' weights


@dataclass(frozen=True)
class Eigenbasis:
    """Adam's step in the eigenbasis of the gradients' covariance, whose polar factor Muon takes.

    For an m x n matrix::

        L <- beta L + (1 - beta) G G^T,    R <- beta R + (1 - beta) G^T G
        P, Q: eigenvectors of L and R, by one step of orthogonal iteration, every ``every`` steps
        V <- beta V + (1 - beta) (P^T G Q)^2    elementwise
        U' = P ((P^T U Q) / sqrt(V)) Q^T

    so that directions of large or noisy gradients do not drown the others. The update's size does
    not matter: its polar factor is taken. A side above 8,192 keeps its own basis, and costs nothing
    but V.

    Args:
        beta: Weight of the old averages L and V (default 0.95).
        every: Steps between two bases (default 10); the first ``every`` steps take one each.
        sides: "both" (default), "outputs" (L alone), or "short": the shorter side alone.

    Raises:
        ValueError: On a value out of range.
        TypeError: On a ``beta`` that is no number.

    Source:
        SOAP, arXiv 2409.11321, whose step is taken as it is; its polar factor instead is this
        project's own.

    Example:
        >>> from torch_specgd import Muon
        >>> optimizer = Muon([torch.nn.Parameter(torch.eye(3))], precondition=Eigenbasis(every=20))
        >>> optimizer.param_groups[0]["precondition"]
        Eigenbasis(beta=0.95, every=20, sides='both')
    """

    beta: float = 0.95
    every: int = 10
    sides: str = "both"
    identities: ClassVar[tuple[str, ...]] = ("left_basis", "right_basis")
    together: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self.beta, self.every, self.sides)

    def shapes(self, m: int, n: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor of the state of an m x n matrix."""
        made: dict[str, tuple[int, ...]] = {"squares": (m, n)}
        for name, k in _sides(m, n, self.sides).items():
            made.update({name: (k, k), f"{name}_basis": (k, k)})
        return made

    def __call__(self, update: Tensor, gradient: Tensor, state: dict[str, Any]) -> Tensor:
        """Return the preconditioned update, (B, m, n)."""
        m, n = update.shape[-2:]
        bases = {}
        for name in _sides(m, n, self.sides):
            covariance, bases[name] = state[name], state[f"{name}_basis"]
            accumulate(covariance, gradient if name == "left" else gradient.mT, self.beta)
            if is_due(state["step"], self.every):
                bases[name].copy_(next_basis(covariance, bases[name]))
        left, right = bases.get("left"), bases.get("right")
        squares, seen = state["squares"], _turned(gradient, left, right).square()
        squares.lerp_(torch.where(seen.isfinite(), seen, squares), 1 - self.beta)
        scaled = _turned(update, left, right) / floored_root(squares)
        return _turned(
            scaled, None if left is None else left.mT, None if right is None else right.mT
        )


@dataclass(frozen=True)
class Shampoo:
    """The update times an inverse root of the gradients' covariance, whose polar factor Muon takes.

    For a matrix whose outputs are its shorter side::

        L <- beta L + (1 - beta) G G^T        averaged at every step
        P  = L^(-1/root)                      anew at every ``every``-th step
        U' = P U

    and U P with G^T G otherwise, so that directions of large gradients do not drown the others. The
    update's size does not matter: its polar factor is taken.

    Args:
        beta: Weight of the old average L (default 0.95).
        every: Steps between two roots (default 20). Before the first one, steps are Muon's: the
            root of a few gradients would raise all that they did not have.
        sides: "short": the shorter side (default); "outputs": theirs, which costs more where m
            exceeds n, and the inputs' where m exceeds 8,192 or 4 n; or "both". A side above 8,192
            is left as it is.
        root: 2 (default), 4 or 8; 4 on both sides is Shampoo's own.

    Raises:
        ValueError: On a value out of range.
        TypeError: On a ``beta`` that is no number.

    Source:
        Gupta et al., arXiv 1802.09568, with averages instead of sums; one side alone: An et al.,
        arXiv 2503.20762.

    Example:
        >>> x = torch.diag(torch.tensor([4.0, 1.0]))[None]
        >>> state = {"step": 20, "left": torch.zeros(1, 2, 2), "left_root": torch.zeros(1, 2, 2)}
        >>> out = Shampoo()(x, x, state)[0].diagonal()
        >>> round(float(out[0] / out[1]), 1)
        1.0
    """

    beta: float = 0.95
    every: int = 20
    sides: str = "short"
    root: int = 2
    identities: ClassVar[tuple[str, ...]] = ("left_root", "right_root")
    together: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self.beta, self.every, self.sides)
        one_of(2, 4, 8)("root", self.root)

    def shapes(self, m: int, n: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor of the state of an m x n matrix."""
        made: dict[str, tuple[int, ...]] = {}
        for name, k in _sides(m, n, self.sides).items():
            made.update({name: (k, k), f"{name}_root": (k, k)})
        return made

    def __call__(self, update: Tensor, gradient: Tensor, state: dict[str, Any]) -> Tensor:
        """Return the preconditioned update, (B, m, n)."""
        m, n = update.shape[-2:]
        for name in _sides(m, n, self.sides):
            covariance, root = state[name], state[f"{name}_root"]
            accumulate(covariance, gradient if name == "left" else gradient.mT, self.beta)
            if state["step"] % self.every == 0:
                root.copy_(next_root(covariance, self.root))
            update = root @ update if name == "left" else update @ root
        return update


def accumulate(covariance: Tensor, x: Tensor, beta: float) -> None:
    """Move a running mean of x x^T on, in place.

    What is beyond the dtype's range counts as zero, which leaves the mean as it was, but smaller:
    its size does not matter.
    """
    # No entry of x x^T is larger than this sum.
    finite = x.square().sum((-2, -1), keepdim=True).isfinite()
    x = torch.where(finite, x, 0)
    covariance.baddbmm_(x, x.mT, beta=beta, alpha=1 - beta)


def is_due(step: int, every: int) -> bool:
    """Say whether a step computes anew: each of the first ones, then every so many."""
    return step <= every or step % every == 0


def next_basis(covariance: Tensor, basis: Tensor) -> Tensor:
    """Turn orthonormal columns towards the eigenvectors, by one step of orthogonal iteration."""
    mean = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    scaled = covariance / mean.clamp(min=torch.finfo(mean.dtype).tiny)
    return torch.linalg.qr(scaled @ basis)[0]


def next_root(covariance: Tensor, root: int) -> Tensor:
    """Return A^(-1/root) of positive semidefinite matrices, up to a factor; of zero, the identity.

    So of what is too small to have all its digits: rounded, it has negative eigenvalues. By the
    engine's products. Eigenvalues below about 2e-4 of the largest count as that: where
    gradients have a low rank the rest is rounding noise, which would become as large.
    """
    mean = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    one = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    info = torch.finfo(mean.dtype)
    known = mean > info.tiny / info.eps
    return inverse_root(torch.where(known, covariance / mean, one), root, check=False)


def floored_root(squares: Tensor) -> Tensor:
    """Return roots of a running mean square, raised by a hundredth of the matrix's own; of zero, 1.

    Where gradients have a low rank the rest is rounding noise, which would become as large.
    """
    rms = squares.mean((-2, -1), keepdim=True).sqrt()
    return squares.sqrt() + torch.where(rms > 0, FLOOR * rms, 1.0)


def _sides(m: int, n: int, sides: str) -> dict[str, int]:
    """Return the length of each side that is preconditioned."""
    both = {"left": m, "right": n}
    if (sides == "outputs" and m <= min(LARGEST_SIDE, TALLEST * n)) or (sides != "both" and m <= n):
        del both["right"]
    elif sides != "both":
        del both["left"]
    return {name: k for name, k in both.items() if k <= LARGEST_SIDE}


def _turned(x: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """Return left^T x right, without what is None."""
    x = x if left is None else left.mT @ x
    return x if right is None else x @ right


def _check(beta: float, every: int, sides: str) -> None:
    number(below=1.0)("beta", beta)
    integer(1)("every", every)
    one_of("short", "outputs", "both")("sides", sides)


BY_NAME: Mapping[str, Any] = {"shampoo": Shampoo(), "eigenbasis": Eigenbasis()}
