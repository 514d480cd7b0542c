"""A score table for the tests of selections."""

import numpy as np

from data_prune import ScoreTable


def make_table(n=1000, seed=0, classes=10, **changes):
    rng = np.random.default_rng(seed)
    columns = {
        "key": np.arange(n),
        "label": rng.integers(classes, size=n),
        "score": rng.uniform(0.001, 0.3, n).astype(np.float32),
        "mean_prob": rng.beta(5, 2, n).astype(np.float32),
        "observed": np.full(n, 30),
        "peers": {"aum": rng.normal(size=n).astype(np.float32)},
    }
    return ScoreTable(**{**columns, **changes})


METHODS = ("plausible", "beta", "weighted", "top", "ccs", "random")
