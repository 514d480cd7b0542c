"""Which observed entries learn together: coupling matrix, components, bipartite graph."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .model import check_factors, surroundings


def coupling_matrix(factors: Sequence[Tensor], mask: Tensor, *, max_entries: int = 4096) -> Tensor:
    """Return the inner products of the gradients of all observed entries of W = W_L ... W_1.

    K[(ij), (pq)] = sum_l (W_{L:l+1} W_{L:l+1}^T)_{ip} (W_{l-1:1}^T W_{l-1:1})_{jq}. At depth 2 two
    entries interact only within a row or a column, whatever the weights; from depth 3 on, the
    middle factors couple entries that share neither.

    Args:
        factors: [W_1, ..., W_L], each (S, d_l, d_{l-1}).
        mask: Observed entries, (m, n) bool, N of them, in row-major order.
        max_entries: Bound on N, since K has N^2 numbers per seed (default 4096).

    Returns:
        K, (S, N, N), symmetric.

    Raises:
        ValueError: If more than max_entries entries are observed.

    Source:
        Shin and Yun, arXiv 2603.04703 (coupled dynamics); the formula is derived from it.

    Example:
        >>> eye = torch.eye(2, dtype=torch.float64)[None]
        >>> coupling_matrix([eye, eye], torch.eye(2).bool())[0]
        tensor([[2., 0.],
                [0., 2.]], dtype=torch.float64)
    """
    check_factors(factors)
    i, j = mask.nonzero(as_tuple=True)
    if len(i) > max_entries:
        raise ValueError(
            f"{len(i)} observed entries would make a coupling matrix of {len(i)}^2 numbers; "
            f"max_entries is {max_entries}: pass a sample of the mask (sample_mask) or raise it"
        )
    total = factors[0].new_zeros(factors[0].shape[0], len(i), len(i))
    rows_equal, columns_equal = i[:, None] == i, j[:, None] == j
    for right, left in zip(*surroundings(factors), strict=True):
        # An empty product is the identity: its Gram matrix is Kronecker's delta.
        by_row = rows_equal if left is None else (left @ left.mT)[:, i[:, None], i]
        by_column = columns_equal if right is None else (right.mT @ right)[:, j[:, None], j]
        total = total + by_row * by_column
    return total


def sample_mask(mask: Tensor, count: int, *, seed: int = 0) -> Tensor:
    """Keep `count` of a mask's entries, drawn without replacement, for :func:`coupling_matrix`.

    Args:
        mask: Bool tensor.
        count: Entries to keep, at most those observed.
        seed: Decides which.

    Returns:
        A bool tensor of the mask's shape.

    Raises:
        ValueError: If count is out of range.

    Example:
        >>> int(sample_mask(torch.ones(9, 9).bool(), 20).sum())
        20
    """
    entries = mask.flatten().nonzero().squeeze(1)
    if not 1 <= count <= len(entries):
        raise ValueError(f"count must be from 1 to {len(entries)}, got {count}")
    order = torch.randperm(len(entries), generator=torch.Generator().manual_seed(seed))
    kept = mask.new_zeros(mask.numel())
    kept[entries[order[:count].to(mask.device)]] = True
    return kept.reshape(mask.shape)


def connected_components(adjacency: Tensor) -> Tensor:
    """Label the connected components of undirected graphs.

    Args:
        adjacency: (..., N, N), bool, symmetric; the diagonal does not matter.

    Returns:
        (..., N), int64: labels 0, 1, ... in the order of each component's first node.

    Raises:
        ValueError: If a graph is not symmetric.

    Example:
        >>> connected_components(torch.tensor([[0, 0, 1], [0, 0, 0], [1, 0, 0]]).bool())
        tensor([0, 1, 0])
    """
    if not bool((adjacency == adjacency.mT).all()):
        raise ValueError("adjacency must be symmetric")
    n = adjacency.shape[-1]
    linked = adjacency | torch.eye(n, dtype=torch.bool, device=adjacency.device)
    nodes = torch.arange(n, device=adjacency.device).expand(adjacency.shape[:-1])
    label = nodes
    while True:
        # The smallest label among the neighbours, then a jump to that label's own label.
        least = torch.where(linked, label.unsqueeze(-2), n).amin(-1)
        least = torch.minimum(least, least.gather(-1, least))
        if torch.equal(least, label):
            break
        label = least
    return (label == nodes).cumsum(-1).gather(-1, label) - 1


def coupled_components(coupling: Tensor, *, tolerance: float = 1e-12) -> Tensor:
    """Return the groups of observed entries that can learn independently of each other.

    Args:
        coupling: K, (S, N, N), from :func:`coupling_matrix`.
        tolerance: Cosines of gradients up to this count as zero (default 1e-12).

    Returns:
        (S, N), int64 labels; one label means coupled dynamics.

    Example:
        >>> coupled_components(torch.eye(3).double()[None])
        tensor([[0, 1, 2]])
    """
    return connected_components(_cosines(coupling).abs() > tolerance)


class CrossCoupling(NamedTuple):
    """Root mean square and maximum of the cosines across groups, each (S,)."""

    rms: Tensor
    max: Tensor


def cross_coupling(coupling: Tensor, groups: Tensor) -> CrossCoupling:
    """Measure how strongly entries of different groups interact.

    Args:
        coupling: K, (S, N, N).
        groups: (N,) int labels, for example the diagonal block of each observed entry.

    Returns:
        Cosines between gradients of entries in different groups.

    Raises:
        ValueError: If there is only one group.

    Example:
        >>> float(cross_coupling(torch.ones(1, 2, 2), torch.tensor([0, 1])).rms)
        1.0
    """
    across = groups[:, None] != groups
    if not bool(across.any()):
        raise ValueError("groups must hold at least two different labels")
    cosines = _cosines(coupling)[:, across]
    return CrossCoupling(cosines.square().mean(1).sqrt(), cosines.abs().amax(1))


def bipartite_components(mask: Tensor) -> Tensor:
    """Label the components of the graph of rows and columns whose edges are observed entries.

    At depth 2 the dynamics is coupled exactly where this graph is connected.

    Args:
        mask: (m, n) bool.

    Returns:
        (N,) int64: the component of each observed entry, in row-major order.

    Source:
        Bai, Zhao and Zhang, arXiv 2405.13721.

    Example:
        >>> bipartite_components(torch.eye(3).bool())
        tensor([0, 1, 2])
    """
    m, n = mask.shape
    adjacency = mask.new_zeros(m + n, m + n)
    adjacency[:m, m:] = mask
    labels = connected_components(adjacency | adjacency.mT)
    # Rows and columns without an observation are components of their own, and hold no entry.
    return torch.unique(labels[:m][mask.nonzero()[:, 0]], return_inverse=True)[1]


def is_connected(mask: Tensor) -> bool:
    """Say whether the observed entries form one connected bipartite graph.

    Args:
        mask: (m, n) bool.

    Example:
        >>> from torch_specgd.factorization import chain_mask
        >>> is_connected(torch.eye(3).bool()), is_connected(chain_mask(3))
        (False, True)
    """
    return int(bipartite_components(mask).max()) == 0


def _cosines(coupling: Tensor) -> Tensor:
    norm = coupling.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    product = norm[..., :, None] * norm[..., None, :]
    # Entries without any gradient (at a saddle) interact with nothing.
    return torch.where(product > 0, coupling / product.clamp(min=1e-300), 0.0)
