"""Random bits without a generator: a function of a number, alike on all devices and in CUDA graphs.

A generator's seed is read on the host, so that each replay of a captured step would round with the
same bits. A number in the memory of the device, which the step itself counts up, is read by the
device.
"""

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # all numbers modulo 2^64, as int64 holds them
_FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


class RandomBits:
    """A stream of random bits; two of the same number are the same.

    Entry i is the output of SplitMix64 at ``key + i golden``, cut into pieces of 16 or 32 bits.

    Args:
        number: One int64 without dimensions; it is read when bits are drawn, by the device.

    Source:
        Steele, Lea and Flood, OOPSLA 2014 (SplitMix64), with the constants of its Java version.

    Example:
        >>> first, second = (RandomBits(torch.tensor(7)) for _ in range(2))
        >>> torch.equal(first.draw(5, "cpu"), second.draw(9, "cpu")[:5])
        True
    """

    def __init__(self, number: Tensor) -> None:
        self._key = _mixed(number * _GOLDEN)
        self._drawn = 0

    def of(self, i: int) -> "RandomBits":
        """Return a stream of its own for a number of at least 0."""
        return RandomBits(self._key + i)

    def draw(
        self, count: int, device: torch.device | str, dtype: torch.dtype = torch.int16
    ) -> Tensor:
        """Return the next integers, each as likely as the other.

        Args:
            count: How many.
            device: Where.
            dtype: int16 or int32, the same at each call.
        """
        each = torch.int64.itemsize // dtype.itemsize
        start = self._drawn
        self._drawn += count
        words = torch.arange(start // each, -(-self._drawn // each), device=device)
        mixed = _mixed(words * _GOLDEN + self._key.to(device))
        return mixed.view(dtype).narrow(0, start % each, count)

    def uniform(self, count: int, device: torch.device | str) -> Tensor:
        """Return the next numbers of [0, 1), multiples of 2^-24 in float32."""
        return ((self.draw(count, device, torch.int32) >> 8) & (2**24 - 1)).float() * 2.0**-24


def _mixed(z: Tensor) -> Tensor:
    # A shift of int64 drags the sign along; SplitMix64 wants zeros.
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _FACTORS[0]
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _FACTORS[1]
    return z ^ ((z >> 31) & (2**33 - 1))


def stochastic_round(x: Tensor, bits: RandomBits) -> Tensor:
    """Round float32 to bfloat16, up or down with probabilities that make the mean exact.

    A bfloat16 buffer loses every contribution below 2^-9 of its value to ordinary rounding; this
    keeps them in the mean.

    Args:
        x: float32; infinities and NaNs stay what they are.
        bits: Source of the 16 random bits per element.

    Returns:
        bfloat16 of the same shape.

    Source:
        Gupta et al., arXiv 1502.02551.
    """
    noise = bits.draw(x.numel(), x.device).view(x.shape)
    rounded = (x.view(torch.int32) + noise + (1 << 15)) & -(1 << 16)
    return torch.where(x.isfinite(), rounded.view(torch.float32), x).to(torch.bfloat16)
