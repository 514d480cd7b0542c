"""What several ranks must agree on; every function is a no-op on one process."""

from __future__ import annotations

import sys

from torch import Tensor


def is_dtensor(x: Tensor) -> bool:
    """Whether ``x`` is a distributed tensor."""
    # Importing torch.distributed.tensor takes a second; whoever holds a DTensor has imported it.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local(x: Tensor) -> Tensor:
    """This rank's part of ``x``."""
    return x.to_local() if is_dtensor(x) else x  # type: ignore[attr-defined]


def full(x: Tensor) -> Tensor:
    """All of ``x``, the same plain tensor on every rank (a collective for distributed tensors)."""
    return x.full_tensor() if is_dtensor(x) else x  # type: ignore[attr-defined]


def local_factor(parameter: Tensor, factor: Tensor) -> Tensor:
    """The rows of a full factor tensor that belong to this rank's part of ``parameter``."""
    if not is_dtensor(parameter):
        return factor
    from torch.distributed.tensor import DTensor, Replicate

    mesh = parameter.device_mesh  # type: ignore[attr-defined]
    everywhere = DTensor.from_local(factor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    # A dimension that the factor broadcasts over stays whole on every rank.
    placements = [
        p if p.is_shard() and factor.shape[p.dim] > 1 else Replicate()
        for p in parameter.placements  # type: ignore[attr-defined]
    ]
    return everywhere.redistribute(mesh, placements).to_local()
