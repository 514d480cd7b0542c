"""The draw of an example: published arithmetic, so that a selection is the same for ever."""

import math

import numpy as np
import pytest
import torch

from data_prune.select.noise import epoch_seed, example_ids, gumbel, shuffled, uniform

WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15


def mix(h: int) -> int:
    """SplitMix64's finalizer (Steele et al. 2014) in Python's integers."""
    h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) % WORD
    return h ^ (h >> 31)


def number(seed: int, key: int) -> float:
    start = mix((seed + GOLDEN) % WORD)
    return ((mix((mix((key * GOLDEN + start) % WORD) + start) % WORD) >> 12) + 0.5) / 2**52


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 5, -1])
def test_numbers_are_those_of_splitmix(seed: int) -> None:
    """A change of one bit would draw other examples than the report of an old selection says."""
    keys = [0, 1, 2, 12345, 2**40 + 1, 2**64 - 1]
    expected = [number(seed % WORD, key) for key in keys]
    ids = np.array(keys, dtype=np.uint64)
    assert uniform(seed, ids).tolist() == expected
    noise = [-math.log(-math.log(u)) for u in expected]
    assert gumbel(seed, ids).tolist() == pytest.approx(noise, rel=1e-12)


def test_epochs_draw_from_seeds_of_52_bits() -> None:
    """An epoch's order is a function of (seed, epoch), and no global generator moves."""
    for seed, epoch in ((0, 0), (3, 7)):
        assert epoch_seed(seed, epoch) == int(number(seed, epoch) * 2**52)
        before = torch.get_rng_state()
        order = shuffled(np.arange(10, 20), seed, epoch)
        assert torch.equal(before, torch.get_rng_state())
        generator = torch.Generator().manual_seed(int(number(seed ^ 0x5EED, epoch) * 2**52))
        assert order.tolist() == [10 + int(i) for i in torch.randperm(10, generator=generator)]


def test_identities_are_the_keys_or_their_hash() -> None:
    """Integers of every kind keep their value; strings go by content; the rest is refused."""
    for kind in ("int64", "int32", "uint64", "uint8"):
        assert example_ids(np.array([0, 7, 250], dtype=kind)[:2]).tolist() == [0, 7]
    assert example_ids(np.array([-1])).tolist() == [2**64 - 1]
    signed = np.arange(3)
    assert np.shares_memory(example_ids(signed), signed)
    for strings in (np.array(["a", "b"]), np.array(["a", "b"], dtype=object)):
        assert example_ids(strings).tolist() == [0x2F42665B399EF840, 0x754F854DE3C27284]
    for other in (np.array([0.5]), np.array(["a", 1], dtype=object), np.array([True])):
        with pytest.raises(TypeError, match="keys must be integers or strings"):
            example_ids(other)
