"""Multiply weights by their factors: all of them, or none.

Products are computed before the first weight is written, and the old values stay at hand until
the caller's block has ended, so that an exception anywhere leaves every weight bit-identical.
Weights are written in place: storage, strides and Parameter objects stay, and with them the
optimizer's references, DDP's buckets and tied views.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .factors import accumulation_dtype
from .ranks import local, local_factor
from .targets import Target


@contextmanager
def replaced(
    parameters: Mapping[str, Tensor], values: MutableMapping[str, Tensor]
) -> Iterator[None]:
    """Write ``values`` into ``parameters``; put the old values back if the body raises.

    The value tensors hold the old values afterwards: swapping needs no memory beyond one parameter.

    Args:
        parameters: What is written, in place.
        values: Same names and shapes, in a dtype that holds the parameters' values exactly.
    """
    backups: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for name, parameter in parameters.items():
                old = parameter.detach().clone()
                backups[name] = old
                parameter.copy_(values[name])
                values[name].copy_(old)
                backups[name] = values[name]
        yield
    except BaseException:
        with torch.no_grad():
            for name, old in backups.items():
                parameters[name].copy_(old)
        raise


@contextmanager
def shrunk(
    targets: Sequence[Target],
    factors: Mapping[str, Tensor],
    scratch: Mapping[str, Tensor] | None = None,
) -> Iterator[None]:
    """Weights times factors, from here on if the body succeeds.

    Args:
        targets: What is multiplied.
        factors: By target name; broadcast against the target's view.
        scratch: Buffers shaped like the parameters that may be overwritten (the direction's, say);
            None allocates them.

    Raises:
        ValueError: If a factor is not finite; nothing has been written then.
    """
    for t in targets:
        if not bool(factors[t.name].isfinite().all()):
            raise ValueError(f"factors of {t.name!r} {tuple(t.parameter.shape)} are not finite")
    weights: dict[str, Tensor] = {}
    products: dict[str, Tensor] = {}
    with torch.no_grad():
        for t in targets:
            w = local(t.parameter.detach())
            buffer = None if scratch is None else local(scratch[t.name])
            if buffer is None:
                buffer = torch.empty_like(w, dtype=accumulation_dtype(w))
            torch.mul(t.view(w), local_factor(t.parameter, factors[t.name]), out=t.view(buffer))
            weights[t.name], products[t.name] = w, buffer
    with replaced(weights, products):
        yield


def apply_factors(targets: Sequence[Target], factors: Mapping[str, Tensor]) -> None:
    """Multiply each target by its factors, in place; all or nothing.

    Example:
        >>> import torch
        >>> from warmstart import apply_factors, find_targets
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> targets, _ = find_targets(layer)
        >>> before = layer.weight.detach().clone()
        >>> apply_factors(targets, {"weight": torch.tensor([[0.5], [1.0]])})
        >>> torch.equal(layer.weight[0], before[0] / 2)
        True
    """
    with shrunk(targets, factors):
        pass
