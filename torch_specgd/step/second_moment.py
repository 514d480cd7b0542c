"""Second moments of orthogonalized updates: of each neuron (NorMuon), of each entry (AdaMuon)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from specgd_common.tensors import is_dtensor

from ..distributed.layout import placed_like

SECOND_MOMENTS = {"neuron": "neuron_second_moment", "element": "element_second_moment"}
BETA = 0.95  # of NorMuon


def normalize(o: Tensor, v: Tensor, beta: float, dims: Sequence[int]) -> Tensor:
    """Divide every output neuron's update, or every entry, by its running root mean square.

        v <- beta v + (1 - beta) mean(O * O)   over a neuron's inputs, or of each entry
        O' = O / sqrt(v),   rescaled to O's Frobenius norm

    so that none learns faster than the others, and the update's size stays Muon's.

    Args:
        o: Orthogonalized update.
        v: Running mean square, ``o``'s shape with ``dims`` kept as 1; in place.
        beta: Weight of the old mean square, in [0, 1).
        dims: Dimensions of a neuron's inputs; none: each entry is by itself.

    Returns:
        A tensor of ``o``'s shape, at least float32. What never had an update stays zero.

    Source:
        NorMuon, arXiv 2510.05491, and AdaMuon, arXiv 2507.11005, whose momentum is reduced to its
        signs first, as it is not here; both without their Adam-matching constant:
        ``adjust_lr_fn`` sets that.
    """
    dtype = torch.promote_types(torch.promote_types(o.dtype, v.dtype), torch.float32)
    wide = o.to(dtype)
    mean = wide.square()
    if dims:
        # Of uneven shards, a sum and not a mean: torch 2.9 averages the ranks' means alike.
        mean = mean.sum(dim=tuple(dims), keepdim=True) / (wide.numel() // v.numel())
    if v.dtype == dtype and not is_dtensor(v):
        mean = v.lerp_(mean, 1 - beta)
    else:
        # torch 2.14 refuses an operation in place on DTensors that lie differently.
        mean = v.to(dtype).lerp(placed_like(mean, v), 1 - beta)
        v.copy_(mean)
    tiny = torch.finfo(dtype).tiny
    normed = wide / mean.sqrt().clamp_(min=tiny**0.5)
    size = torch.linalg.vector_norm(normed).clamp(min=tiny)
    return normed.mul_(torch.linalg.vector_norm(wide) / size)
