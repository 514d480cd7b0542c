"""What the tests of recordings share: logits, batches and the loop that records them."""

import numpy as np
import torch

from reference import dual as naive

PEERS = ("dyn_unc", "el2n", "forgetting", "aum", "tdds")


def logits_and_labels(T=7, N=40, C=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(T, N, C, generator=g), torch.randint(C, (N,), generator=g)


def probabilities(z, y):
    return [[naive.softmax(row)[label] for row, label in zip(epoch, y, strict=True)] for epoch in z]


def record(tracker, z, y, batches):
    """batches[t] is a list of index lists."""
    for t, epoch in enumerate(batches):
        for index in epoch:
            tracker.update(index, z[t, index], y[index])
        tracker.end_epoch()
    return tracker.table()


def shuffled(N, size, seed):
    order = np.random.default_rng(seed).permutation(N)
    return [order[i : i + size].tolist() for i in range(0, N, size)]
