"""What replicas must agree on before they share the work of a step."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from specgd_common.tensors import is_dtensor


def partly_missing(params: Sequence[Tensor]) -> list[Tensor]:
    """Return the parameters with a gradient on some ranks of the default group, but not on all.

    Every rank must pass the same parameters, and gets the same answer: one exchange of a number a
    parameter. Without a process group, inside the compiler and while a CUDA graph is captured
    nothing is asked.

    Args:
        params: Replicated parameters; DTensors are left out.
    """
    if not (dist.is_available() and dist.is_initialized()) or torch.compiler.is_compiling():
        return []
    plain = [p for p in params if not is_dtensor(p)]
    if not plain or dist.get_world_size() == 1:
        return []
    if plain[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return []
    there = [int(p.grad is not None) for p in plain]
    counts = torch.tensor(there, dtype=torch.int32, device=plain[0].device)
    dist.all_reduce(counts)
    world = dist.get_world_size()
    return [p for p, n in zip(plain, counts.tolist(), strict=True) if 0 < n < world]
