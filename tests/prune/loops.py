"""A data set whose examples know their number, and a user's loop over a wrapped loader."""

import numpy as np
import torch
from torch.utils.data import (
    Dataset,
    IterableDataset,
)

N, C = 23, 4


class Items(Dataset):
    """Example i is the number i with label i % C; at module level so that workers can load it."""

    def __init__(self, n=N, as_dict=False, batched=False):
        self.n, self.as_dict = n, as_dict
        self.batched_reads = 0
        if batched:
            self.__getitems__ = self._many

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        x, y = torch.tensor([float(i)]), i % C
        return {"x": x, "y": y} if self.as_dict else (x, y)

    def _many(self, indices):
        self.batched_reads += 1
        return [self[i] for i in indices]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(4))


def custom_collate(examples):
    return {"x": torch.stack([x for x, _ in examples]), "y": torch.tensor([y for _, y in examples])}


def logits_of(x, y, epoch):
    """Each example's logits encode its own number and the epoch, so that a mix-up shows."""
    z = torch.zeros(len(x), C)
    z[torch.arange(len(x)), y] = torch.sin(x.squeeze(-1) * 3 + epoch) * 2
    return z


def true_history(epochs, n=N):
    i = np.arange(n)
    z = np.sin(np.float32(i * 3)[None] + np.arange(epochs)[:, None]) * 2
    return np.exp(z) / (np.exp(z) + C - 1)


def run(loader, epochs):
    """A user's loop; returns the examples seen in each epoch."""
    seen = []
    for epoch in range(epochs):
        seen.append([])
        steps = 0
        for batch in loader:
            steps += 1
            x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch
            loader.record(logits_of(x, y, epoch), y)
            seen[-1] += x.squeeze(-1).long().tolist()
        assert steps == -(-len(seen[-1]) // 5) or loader.drop_last
    return seen
