"""Recording on several ranks equals one process."""

import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from data_prune import DualTracker, KeyedTracker, ScoreTable
from ranks import leave


def _rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    tracker = DualTracker(21, epochs=3, window=2, peers=("el2n", "forgetting"))
    keyed = KeyedTracker(epochs=3, window=2, capacity=2)
    for epoch in range(3):
        # Padding makes 22 of 21: example 0 is seen by both ranks, with different logits.
        for i in [*range(rank, 21, 2), *([0] if rank else [])]:
            z = torch.sin(torch.tensor([[i, i + 1.0, 2.0 * i]]) + epoch + 0.1 * rank)
            tracker.update([i], z, torch.tensor([i % 3]))
            keyed.update([f"k{i}"], z, torch.tensor([i % 3]))
        if epoch == 1 and rank == 1:
            bad = torch.full((1, 3), math.nan)
            tracker.update([1], bad, torch.tensor([1]))
        tracker.end_epoch()
        keyed.end_epoch()
    table = tracker.table()
    digests = [None, None]
    kept = table.select(0.5, ignore_nonfinite=True).tolist()
    dist.all_gather_object(digests, (table.digest(), tracker.coverage()["nonfinite"], kept))
    assert digests[0] == digests[1], digests
    words = keyed.table()
    position = [words.key.tolist().index(f"k{i}") for i in range(21)]
    np.testing.assert_array_equal(words.score[position], table.score)
    if rank == 0:
        table.to_parquet(f"{folder}/table.parquet")
        Path(f"{folder}/coverage.json").write_text(json.dumps(tracker.coverage()))
    leave()


def test_two_ranks_agree_and_equal_one_process(tmp_path):
    """Sums and counts merge once an epoch: same table everywhere, padding counts with its mean."""
    mp.start_processes(_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    alone = DualTracker(21, epochs=3, window=2, peers=("el2n", "forgetting"))
    for epoch in range(3):
        for i in range(21):
            for rank in (0, 1) if i == 0 else (i % 2,):
                z = torch.sin(torch.tensor([[i, i + 1.0, 2.0 * i]]) + epoch + 0.1 * rank)
                alone.update([i], z, torch.tensor([i % 3]))
        alone.end_epoch()
    merged, single = ScoreTable.from_parquet(tmp_path / "table.parquet"), alone.table()
    np.testing.assert_allclose(merged.score, single.score, atol=1e-7)
    np.testing.assert_allclose(merged.mean_prob, single.mean_prob, atol=1e-7)
    np.testing.assert_array_equal(merged.label, single.label)
    for name in single.peers:
        np.testing.assert_allclose(merged.peers[name], single.peers[name], atol=1e-6)
    coverage = json.loads((tmp_path / "coverage.json").read_text())
    assert coverage["duplicates"] == 3
    assert coverage["nonfinite"] == 1
    assert coverage["missing_per_epoch"] == [0, 0, 0]
