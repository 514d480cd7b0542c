"""SplitMix64 in Python's integers (Steele, Lea and Flood, OOPSLA 2014)."""

GOLDEN = 0x9E3779B97F4A7C15


def split_mix(z: int) -> int:
    """Return the output of the generator in state z."""
    z %= 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def key_of(number: int) -> int:
    """Return the state in which the stream of a number begins."""
    return split_mix(number * GOLDEN)


def pieces(number: int, count: int, bits: int) -> list[int]:
    """Return the first pieces of a stream, each word's lowest bits first."""
    words = [split_mix(key_of(number) + i * GOLDEN) for i in range(-(-count * bits // 64))]
    return [word >> k & (1 << bits) - 1 for word in words for k in range(0, 64, bits)][:count]
