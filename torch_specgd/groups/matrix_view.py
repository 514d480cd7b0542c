"""Which algorithm a parameter gets, and which matrices it consists of."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Size, Tensor

from specgd_common.cuts import Cut, joined, part_sizes, pieces

MATRIX_VIEWS = ("auto", "flatten", "batch", "transposed")


class MatrixView(NamedTuple):
    """How a parameter is seen as matrices: a kind of ``MATRIX_VIEWS``, after an optional split.

    ``split`` is (dim, sizes) or (dim, sizes, repeats): a fused QKV weight of shape (3 E, E) is
    (0, (E, E, E)), or (0, (d, d, d), heads) where q, k and v alternate head by head.
    """

    kind: str = "auto"
    split: Cut | None = None

    @staticmethod
    def of(view: "str | MatrixView") -> "MatrixView":
        """Accept a kind where no split is meant."""
        return MatrixView(view) if isinstance(view, str) else view

    def pieces(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the parts that are orthogonalized on their own, in their order."""
        return pieces(x, self.split)

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the whole of which these are the pieces: the inverse of ``pieces``."""
        return joined(parts, self.split)

    def part_shapes(self, shape: Sequence[int]) -> list[Size]:
        """Return the shapes of the pieces of a whole of this shape."""
        if self.split is None:
            return [Size(shape)]
        dim = self.split[0] % len(shape)
        return [Size((*shape[:dim], n, *shape[dim + 1 :])) for n in part_sizes(self.split)]


def describe(param: Tensor, name: str | None = None) -> str:
    """Name a parameter in an error message: its name where known, and its shape."""
    shape = tuple(param.shape)
    return f"parameter {name!r} of shape {shape}" if name else f"a parameter of shape {shape}"


def is_matrix(param: Tensor) -> bool:
    """Say whether a shape alone makes a parameter Muon's: two or more dimensions.

    A vector in three or more, as scales of channels (C, 1, 1) are, is none.
    """
    return param.ndim == 2 or (param.ndim > 2 and param.numel() > max(param.shape))


def uses_muon(param: Tensor, use_muon: bool | None, name: str | None = None) -> bool:
    """Say whether Muon orthogonalizes this parameter; AdamW takes the others.

    Args:
        param: The parameter.
        use_muon: The group's choice; None decides by shape, see ``is_matrix``.
        name: The parameter's name, for the error message.

    Returns:
        True for Muon, False for AdamW.

    Raises:
        ValueError: If Muon is asked for and the parameter is no matrix.
    """
    if use_muon is None:
        return is_matrix(param)
    if use_muon and param.ndim < 2:
        raise ValueError(
            f"use_muon=True needs parameters of two or more dimensions, but the group has "
            f"{describe(param, name)}; leave use_muon=None to send such parameters to AdamW"
        )
    return use_muon


def as_matrices(x: Tensor, view: str | MatrixView) -> Tensor:
    """View a tensor (one piece, where it is split) as the batch of matrices that it means.

    Args:
        x: Tensor of two or more dimensions.
        view: "auto": 2-D is one matrix, 3-D is a batch (expert stacks), 4-D and higher are
            convolutions, flattened to (out, rest). "flatten": always (out, rest), which is right
            for Conv1d weights. "batch": the last two dimensions, whatever stands before them.
            "transposed": as "batch", for weights that are stored (in, out).

    Returns:
        (B, m, n), a view where the strides allow it.
    """
    return x.reshape(batch_shape(x.shape, view))


def batch_shape(shape: Size, view: str | MatrixView) -> tuple[int, int, int]:
    """Return (B, m, n) of a tensor's matrices, see ``as_matrices``."""
    if _is_flat(len(shape), MatrixView.of(view).kind):
        return 1, shape[0], shape[1:].numel()
    # Spelled out: a rank's piece may be empty, and then -1 could be anything.
    return shape[:-2].numel(), shape[-2], shape[-1]


def matrix_shape(shape: Size, view: str | MatrixView) -> tuple[int, int]:
    """Return (outputs, inputs) of the logical matrix, of which learning-rate scales are made."""
    _, m, n = batch_shape(shape, view)
    return (n, m) if MatrixView.of(view).kind == "transposed" else (m, n)


def input_dims(x: Tensor, view: str | MatrixView) -> tuple[int, ...]:
    """Return the dimensions over which one output neuron's inputs extend."""
    kind = MatrixView.of(view).kind
    if _is_flat(x.ndim, kind):
        return tuple(range(1, x.ndim))
    return (x.ndim - 2,) if kind == "transposed" else (x.ndim - 1,)


def batch_dims(ndim: int, view: str | MatrixView) -> int:
    """Return how many leading dimensions count matrices: a slice of them holds whole ones."""
    kind, split = MatrixView.of(view)
    if _is_flat(ndim, kind):
        return 0
    return ndim - 2 if split is None or split[0] % ndim >= ndim - 2 else 0


def piece_shapes(shape: Size, view: MatrixView) -> list[tuple[int, int]]:
    """Return (m, n) of the matrices that a parameter of this full shape consists of, as stored.

    Example:
        >>> piece_shapes(Size((12, 4)), MatrixView(split=(0, (8, 4))))
        [(8, 4), (4, 4)]
    """
    return [batch_shape(piece, view)[1:] for piece in view.part_shapes(shape)]


def _is_flat(ndim: int, kind: str) -> bool:
    return kind == "flatten" or (kind == "auto" and ndim != 3)


def names_of(group: Mapping[str, Any]) -> list[str | None]:
    """Return the names of a group's parameters, Nones where it was given none."""
    names = group.get("param_names")
    return list(names) if names is not None else [None] * len(group["params"])
