"""The radix search keeps what a sort keeps."""

from functools import reduce

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prune.select.topk import find_threshold, sortable


@given(st.lists(st.floats(allow_nan=False), min_size=2, max_size=30))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_sortable_keys_keep_the_order_of_floats(values):
    """Infinite, negative and zero priorities in the right order (the last bit may tie)."""
    x = np.array(values)
    keys = sortable(x)
    order = np.argsort(x, kind="stable")
    assert (np.diff(keys[order].astype(object)) >= 0).all()
    assert sortable(np.array([-0.0])) == sortable(np.array([0.0]))
    # Two bits are given away, and no more: neighbours but three are told apart, near zero too.
    for one in (1.0, 1e-300, -3.0):
        apart = one + np.arange(5) * 4 * np.spacing(one)
        assert len(np.unique(sortable(apart))) == 5


# 40 groups take digits of 14 bits, of which the last of a word is cut short.
@given(
    st.integers(0, 1000),
    st.sampled_from([1, 2, 5, 40]),
    st.sampled_from(["free", "ties", "prefix", "hashes"]),
    st.sampled_from([10, 500, 5000]),
)
@settings(max_examples=40, derandomize=True, deadline=None)
def test_radix_threshold_equals_sorting(seed, groups, kind, collect):
    """The streaming search and a plain sort must keep the very same examples."""
    from data_prune.select import topk

    rng = np.random.default_rng(seed)
    n = 2000
    priority = rng.integers(0, 2**64, n, dtype=np.uint64)
    if kind in ("ties", "hashes"):
        priority = rng.integers(0, 3, n).astype(np.uint64)
    elif kind == "prefix":
        priority = (np.uint64(7) << np.uint64(40)) + rng.integers(0, 50, n).astype(np.uint64)
    ids = rng.permutation(n).astype(np.uint64)
    if kind == "hashes":  # of keys: they fill all 64 bits
        ids = rng.integers(0, 2**64, n, dtype=np.uint64)
    group = rng.integers(groups, size=n)
    sizes = np.bincount(group, minlength=groups)
    quotas = np.array([rng.integers(0, size + 1) for size in sizes])
    chunks = [
        (priority[i : i + 300], ids[i : i + 300], group[i : i + 300]) for i in range(0, n, 300)
    ]
    before, topk.COLLECT = topk.COLLECT, collect
    try:
        search = find_threshold(lambda f, merge: reduce(merge, map(f, chunks)), quotas, n)
    finally:
        topk.COLLECT = before
    kept = np.concatenate([search.keep(c) for c in chunks])
    for g in range(groups):
        members = np.flatnonzero(group == g)
        ranked = sorted(members, key=lambda i: (-int(priority[i]), int(ids[i])))
        assert set(np.flatnonzero(kept & (group == g))) == set(ranked[: quotas[g]])
