"""(seed, example id) -> random numbers that depend on nothing else.

The draw of an example is the same in memory, in a stream, on any rank and for any batch size, and
no generator (global or private) is advanced.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finalize as SplitMix64 (Steele et al. 2014): every input bit reaches every output bit."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def example_ids(keys: NDArray) -> NDArray[np.uint64]:
    """Return the 64-bit identity of each key: integers as they are, strings by BLAKE2b.

    Args:
        keys: (N,) integers or strings.

    Returns:
        (N,) uint64.

    Raises:
        TypeError: For any other kind of key.

    Example:
        >>> example_ids(np.array([0, 7])).tolist()
        [0, 7]
    """
    keys = np.asarray(keys)
    if keys.dtype.kind in "iu":
        # A view where it can be one: identities of 10**8 examples would take 0.8 GB.
        return (
            keys.view(np.uint64) if keys.dtype == np.int64 else keys.astype(np.uint64, copy=False)
        )
    if keys.dtype.kind in "UO" and all(isinstance(key, str) for key in keys.flat):
        digests = b"".join(hashlib.blake2b(k.encode(), digest_size=8).digest() for k in keys.flat)
        return np.frombuffer(digests, dtype="<u8").astype(np.uint64)
    raise TypeError(f"keys must be integers or strings, got an array of dtype {keys.dtype}")


def uniform(seed: int, ids: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return uniform numbers in the open interval (0, 1), one for each id.

    Args:
        seed: Any integer.
        ids: (N,) uint64.

    Returns:
        (N,) float64 on the grid (i + 1/2) / 2**52, so neither 0 nor 1 can occur.

    Example:
        >>> u = uniform(0, np.arange(3, dtype=np.uint64))
        >>> bool(((u > 0) & (u < 1)).all()) and u.tolist() == uniform(0, np.arange(3)).tolist()
        True
    """
    start = _mix(np.array([(int(seed) % 2**64)], dtype=np.uint64) + _GOLDEN)
    h = _mix(_mix(np.asarray(ids).astype(np.uint64, copy=False) * _GOLDEN + start) + start)
    # 52 bits and a half: with 53 the largest value would round to exactly 1.
    return ((h >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def gumbel(seed: int, ids: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return standard Gumbel noise, one number for each id.

    The k largest of ``log w + gumbel`` follow the law of drawing k times without replacement
    with probabilities proportional to w.
    """
    return -np.log(-np.log(uniform(seed, ids)))


def epoch_seed(seed: int, epoch: int) -> int:
    """Return a seed of 52 bits for what is drawn anew in each epoch."""
    return int(uniform(seed, np.array([epoch], np.uint64))[0] * 2**52)


def shuffled(indices: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Return a permutation that depends on (seed, epoch) only; global generators are left alone.

    Example:
        >>> sorted(shuffled(np.arange(4), seed=0, epoch=2).tolist())
        [0, 1, 2, 3]
    """
    generator = torch.Generator().manual_seed(epoch_seed(seed ^ 0x5EED, epoch))
    return indices[torch.randperm(len(indices), generator=generator).numpy()]
